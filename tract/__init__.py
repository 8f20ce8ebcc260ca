"""TRACT: few-step samplers by transitive closure time-distillation (Berthelot et al. 2023).

Three formulas carry the package, for x_t = alpha_t x0 + sigma_t eps (VP and VE alike):

    step        x_s = k x_t + (alpha_s - k alpha_t) x0,  k = sigma_s / sigma_t
    denoiser    x0 = c_skip x_t + c_out net(c_in x_t)
    target      lerp(x0_second(x_u), x0_teacher(x_t), w(t, u, s))

Files, each importing only from those above it:

    checks      refusals of values that cannot be
    levels      noise levels: cosine, EDM's, DDPM's
    ddim        the step between levels, and the weight of the target
    denoiser    prediction types, and the contract of all models
    samplers    DDIM and Heun as whole trajectories
    oracle      exact denoisers in closed form
    phases      phase schedules: lists of integers, checked
    ema         running averages of weights
    data        data sets in memory
    unet        the paper's network for images
    mlp         a small network for points
    presets     networks by name, and from their description
    train       settings, loss weights, randomness, and the teacher's loop
    distill     BTD, TRACT and consistency distillation as one loop
    state       weights and whole states as files
    cards       what a run is, as JSON beside it, and refused if it should become another
    results     the table of measured numbers
    guards      one writer of a run, named failures, interrupts between steps
    runs        run directories: progress, history, checkpoints, resuming
    metrics     Frechet distance and rmse
    evaluate    samples from noise that is the same for every model
    experiment  what the notebooks of one run directory share
    plots       pictures
    execute     notebooks through papermill
    quickstart  the main job
    cli         the `tract` command
"""
