"""What all mixers of softmax attention share: projections, branches, positions, the one formula."""
