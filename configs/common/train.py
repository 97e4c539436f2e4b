"""Settings of a run besides the model, the data, the optimizer and the learning rate."""

train = dict(
    output_dir="./output",
    # Weights to start from: file or URL of a detector or a backbone (docs/model_zoo.md).
    init_checkpoint="",
    # Length of the run. Own data are trained on for as many epochs (train_net.py --data-dir).
    epochs=12,
    max_iter=90_000,
    # Fixes initialization, order of the data, augmentation and noise.
    seed=42,
    # auto: cuda if there is one, else cpu
    device="auto",
    # auto: bfloat16 where the device has it, else float16, or float32 on the CPU
    amp=dict(enabled=False, dtype="auto"),
    # Precision of float32 matrix products: highest, high (TF32 on GPUs since Ampere), medium.
    matmul_precision="highest",
    # Parts in which a batch is computed, one after the other: less memory, the same gradients.
    accumulate=1,
    # If set, the learning rate is multiplied by total_batch_size / reference_batch_size.
    reference_batch_size=0,
    # torch.compile the stages: minutes at the start, faster steps.
    compile=False,
    # Memory format of the convolutions; None: channels last on the CPU, where it is faster.
    channels_last=None,
    # Exponential moving average of the weights, saved beside them. If there is one, it is what is
    # evaluated; evaluate="raw" evaluates the weights themselves, "both" one after the other.
    ema=dict(enabled=False, decay=0.9998, evaluate="ema"),
    clip_grad_norm=0.1,
    # Part of the run, at its end, without mosaic, mixup and copy-paste.
    close_up=0.1,
    checkpointer=dict(period=5000, max_to_keep=3),
    eval_period=5000,
    best_metric="bbox/AP",
    # Evaluations without a better best_metric after which the run ends; 0 never ends it.
    patience=0,
    # Names of modules that are not trained: ["backbone", "neck"]
    freeze=[],
    # Deterministic algorithms, where PyTorch has them.
    deterministic=False,
    # Validation images that are drawn with detections and salience at each evaluation.
    previews=4,
    log_period=20,
    # Send what TensorBoard shows to Weights & Biases as well.
    wandb=dict(enabled=False, project="salience_detr", name=None),
    # Send the same numbers to MLflow, at MLFLOW_TRACKING_URI.
    mlflow=dict(enabled=False, experiment="salience_detr", name=None),
)
