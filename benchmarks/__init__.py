"""What structmat costs next to its peers: every figure is a ratio measured inside one process, after both were
verified."""
