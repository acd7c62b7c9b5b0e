"""The parts that backbones are built of: resampling, MLPs, local convolutions, and their costs."""
