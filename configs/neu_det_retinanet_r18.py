"""RetinaNet with backbone, data, epochs and weight averaging of neu_det_r18, to compare with."""

from .models.retinanet import retinanet
from .neu_det_r18 import dataloader, lr_multiplier, optimizer, train
from .neu_det_r18 import model as salience_detr

model = retinanet(salience_detr.backbone, salience_detr.num_classes)
train.clip_grad_norm = 10.0  # its gradients are larger than those of a DETR
train.output_dir = "./output/neu_det_retinanet_r18"
