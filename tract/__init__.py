"""TRACT: few-step samplers by transitive closure time-distillation (Berthelot et al. 2023).

Three formulas carry the package, for x_t = alpha_t x0 + sigma_t eps (VP and VE alike):

    step        x_s = k x_t + (alpha_s - k alpha_t) x0,  k = sigma_s / sigma_t
    denoiser    x0 = c_skip x_t + c_out net(c_in x_t)
    target      lerp(x0_second(x_u), x0_first(x_t), w(t, u, s))

The core, in reading order, which imports nothing but itself and `base`:

    levels    noise levels: cosine, EDM, DDPM
    step      the deterministic step, and the weight of the target
    denoiser  x0 = denoise(x_t, level): the contract of all models
    samplers  whole trajectories by DDIM and Heun
    phases    phase schedules such as 1024 > 32 > 1
    methods   BTD, TRACT and consistency distillation as data
    losses    loss weights by level
    distill   the distillation loop
    ema       running averages of weights
    train     the teacher's loop
    settings  settings of both loops
    optimize  one step of the optimizer
    seeds     random generators keyed by seed and step
    records   what a finished step reports
    data      samples in memory, and batches of them
    unet      the paper's U-Net
    oracle    exact denoisers in closed form

The rooms; each imports only the core and the rooms above it (the core itself imports base):

    base         support code that knows nothing of diffusion
    networks     networks beside the paper's U-Net, networks by name, and weights as files
    teachers     readers of published teachers
    datasets     data sets by name, image files, and their cache
    metrics      distances between images, and what they are measured on
    experiments  run directories: settings, history, checkpoints, results, several processes
    jobs         work that needs nobody: executed notebooks, sweeps, cost and speed
    lab          what one sees and clicks in a notebook
    studies      the paper's ablations and ours: recipes, runs, tables and charts
    cli          the `tract` command
"""
