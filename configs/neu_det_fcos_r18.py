"""FCOS with backbone, data, epochs and weight averaging of neu_det_r18, to compare with."""

from .models.fcos import fcos
from .neu_det_r18 import dataloader, lr_multiplier, optimizer, train
from .neu_det_r18 import model as salience_detr

model = fcos(salience_detr.backbone, salience_detr.num_classes)
for _loader in (dataloader.train, dataloader.test):
    _loader.mapper.image_format = "RGB"  # FCOS does not name it, unlike the others
train.clip_grad_norm = 10.0  # its gradients are larger than those of a DETR
train.output_dir = "./output/neu_det_fcos_r18"
