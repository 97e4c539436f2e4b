"""What a run does besides its steps."""

train = dict(
    output_dir="./output",
    init_checkpoint="",  # file or URL to start from: a detector, or a backbone (docs/model_zoo.md)
    match_classes=False,  # of a checkpoint with other classes, keep those that have the same name
    epochs=12,  # that max_iter amounts to; own data are trained on for as many
    max_iter=90_000,
    seed=42,  # fixes initialization, order of the data, augmentation and noise
    device="auto",  # cuda if there is one, else cpu
    amp=dict(enabled=False, dtype="auto"),  # auto: bfloat16 where the device has it, else float16
    accumulate=1,  # parts in which a batch is computed, one after the other: less memory, the same gradients
    reference_batch_size=0,  # if set, the learning rate is multiplied by total_batch_size / reference_batch_size
    compile=False,  # torch.compile the stages: minutes at the start, faster steps
    channels_last=False,  # memory format of the convolutions, often faster with mixed precision
    ema=dict(
        enabled=False, decay=0.9998
    ),  # average of the weights: evaluated and saved beside them
    clip_grad_norm=0.1,
    checkpointer=dict(period=5000, max_to_keep=3),
    eval_period=5000,
    best_metric="bbox/AP",
    previews=4,  # validation images that are drawn with their detections and salience at each evaluation
    log_period=20,
    wandb=dict(enabled=False, project="salience_detr", name=None),  # Weights & Biases as well
)
