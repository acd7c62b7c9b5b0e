"""Which backend computes, and in what parts."""
