"""Swaps the attention of one stage, counts both backbones, and reads the stages' maps."""

import torch

import transom

hybrid = "swin_t/3=pale:size=7"
table = transom.compare("swin_t", hybrid)
for row in table:
    print(f"{row['model']}: {row['params']:,} parameters, {row['macs']:,} MACs")

report = transom.count(hybrid, trace=False)
print(report.trust)

model = transom.create(hybrid, num_classes=10)
maps = model.features(torch.zeros(1, 3, 64, 64))
for stride, level in zip(model.strides, maps, strict=True):
    print(stride, tuple(level.shape))
