"""TRACT: few-step samplers by transitive closure time-distillation (Berthelot et al. 2023).

Three formulas carry the package, for x_t = alpha_t x0 + sigma_t eps (VP and VE alike):

    step        x_s = k x_t + (alpha_s - k alpha_t) x0,  k = sigma_s / sigma_t
    denoiser    x0 = c_skip x_t + c_out net(c_in x_t)
    target      lerp(x0_second(x_u), x0_teacher(x_t), w(t, u, s))

Files, each importing only from those above it:

    checks      refusals of values that cannot be
    levels      noise levels: cosine, EDM's, DDPM's
    ddim        the step between levels, and the weight of the target
    compute     device, threads, precision, memory format and compilation
    parallel    one run by several processes
    team        starting them, and giving them their task
    denoiser    prediction types, and the contract of all models
    samplers    DDIM and Heun as whole trajectories
    oracle      exact denoisers in closed form
    phases      phase schedules: lists of integers, checked
    rounds      students that learn perfectly, round by round
    ema         running averages of weights
    files       writing whole files or none
    images      image files in folders and zips, decoded and reduced
    cache       image files as one array, converted once
    data        data sets by name
    unet        the paper's network for images
    edm_blocks  blocks of EDM's networks
    edm_unet    EDM's networks for images: DDPM++, NCSN++ and ADM
    diffusers_unet  the network of diffusers' pixel-space pipelines
    mlp         a small network for points
    presets     networks by name, and from their description
    records     what a finished step reports, once a GPU has come so far
    train       settings, loss weights, randomness, and the teacher's loop
    growth      when a phase goes on to the next of growing teacher grids
    methods     what tells BTD, TRACT and consistency distillation apart; settings of a run
    distill     BTD, TRACT and consistency distillation as one loop
    state       weights and whole states as files
    teachers/fill             a network filled with all tensors of a file
    teachers/pickles          EDM's pickles as data
    teachers/edm              EDM's networks from them
    teachers/containers       tensors in flax's and torch's files
    teachers/paper_unet       the paper's network in other projects' tensors
    teachers/google           Google's networks of progressive distillation
    teachers/apple            networks of the paper's authors
    teachers/diffusers_read   pipelines of diffusers
    teachers/load             any of these, recognised
    cards       what a run is, as JSON beside it, and refused if it should become another
    results     the table of measured numbers
    teachers/diffusers_write  students as pipelines of diffusers
    guards      one writer of a run, named failures, interrupts between steps
    events      TensorBoard's event files
    history     a line for every step of a run
    runs        run directories: progress, history, checkpoints, resuming
    moments     mean and covariance, batch by batch
    classifier  a small classifier of the data
    features    what distances are measured in, by name
    metrics     Frechet distance and its kin
    evaluate    samples from noise that is the same for every model
    experiment  what the notebooks of one run directory share
    worker      what a further process of a training does
    sources     images to measure: data, files, models
    statistics  moments of the features of a source, resumed and kept
    writer      samples of a model as a file, resumed
    measuring   samples of a run, and numbers about them
    ablations   the paper's ablations and our own as data
    evidence    those runs: a teacher, real images, students, each made once
    plane       the same on points in the plane, with an exact teacher
    tables      published numbers beside measured ones
    agreement   whether results depend on how they are computed
    fid         FID and its kin, with their conditions
    plots       pictures of data, schedules, samples and losses
    diagram     the picture of a phase schedule
    charts      pictures of the tables
    widgets     widgets that can be read without a kernel
    catalogue   runs below a folder: what they are and make
    run_browser  runs in a table, compared
    explorer    schedules and noises to play with
    live        whether somebody is there to click
    execute     notebooks through papermill
    quickstart  the main job
    cluster     clients of dask: a cluster that is there, or processes here
    sweep       many executions of a notebook
    console     tables, JSON lines and YAML of the command
    trials      a few steps on random data
    cost        what a run costs, told before it is started
    bench       how fast a step is
    plan        what a distillation comes to, phase by phase
    recipes     settings of distillations as papermill's parameters
    editor      settings of a distillation as widgets
    probes      what a distillation under way can be asked
    curves      curves of a run under way, cheap to redraw
    monitor     a distillation watched while it trains
    overhead    what watching costs
    cli_speed   commands about how a run is computed
    cli         the `tract` command
    __main__    the same for `python -m tract`
"""
