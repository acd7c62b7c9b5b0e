"""Choice of the backend that computes, and execution in parts."""
