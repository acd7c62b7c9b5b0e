"""What a run can learn: classes, or the pixels of hidden patches."""
