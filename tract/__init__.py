"""TRACT: few-step samplers by transitive closure time-distillation (Berthelot et al. 2023).

Three formulas carry the package, for x_t = alpha_t x0 + sigma_t eps (VP and VE alike):

    step           x_s = k x_t + (alpha_s - k alpha_t) x0,  k = sigma_s / sigma_t
    denoiser       x0 = c_skip x_t + c_out net(c_in x_t)
    target         lerp(x0_second(x_u), x0_teacher(x_t), w(t, u, s))

Files, each importing only from those above it:

    levels         noise levels: cosine, EDM's, DDPM's           phases     phase schedules
    ddim           the step and the target's weight              ema        weight averages
    denoiser       prediction types, the contract of all models  data       data sets
    samplers, oracle                trajectories, exact denoisers
    unet, mlp, presets              networks, and by name
    train, distill                  the two training loops
    state, runs, metrics, evaluate  saving, run directories, measuring
    plots, execute, quickstart, cli pictures, papermill, the main job, the command
"""
