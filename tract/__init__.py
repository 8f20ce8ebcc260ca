"""TRACT: few-step samplers by transitive closure time-distillation (Berthelot et al. 2023).

The package rests on three formulas, for x_t = alpha_t x0 + sigma_t eps (VP and VE alike):

    step        x_s = k x_t + (alpha_s - k alpha_t) x0,  k = sigma_s / sigma_t
    denoiser    x0 = c_skip x_t + c_out net(c_in x_t)
    target      lerp(x0_second(x_u), x0_first(x_t), w(t, u, s))

The core, in reading order; it imports only itself and `base`:

    levels    noise levels: cosine, EDM, DDPM
    step      the deterministic step, and the weight of the target
    denoiser  x0 = denoise(x_t, level): the contract of all models
    samplers  whole trajectories by DDIM and Heun
    phases    phase schedules such as 1024 > 32 > 1
    methods   BTD, TRACT and consistency distillation as table entries
    losses    loss weights by level
    distill   the distillation loop
    ema       running averages of weights
    train     the teacher's training loop
    settings  settings of both loops
    optimize  one optimizer step
    seeds     random generators keyed by seed and step
    records   progress and losses of a finished step
    data      data sets in memory, and batches
    unet      the paper's U-Net
    oracle    exact denoisers in closed form

The rooms; each imports only the core and the rooms listed before it:

    base         support code that is independent of diffusion
    networks     further networks, networks by name, weight files
    teachers     readers of published teachers
    datasets     data sets by name, image files, and their cache
    metrics      distances between sets of images, and their sources
    experiments  run directories: settings, history, checkpoints, results, several processes
    jobs         unattended work: notebook execution, sweeps, cost and speed
    lab          widgets and plots for notebooks
    studies      the paper's ablations and ours: recipes, runs, tables and charts
    cli          the `tract` command
"""
