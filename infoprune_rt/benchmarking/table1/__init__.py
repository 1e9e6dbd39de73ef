"""Table 1: dense, YOPO and InfoPrune side by side, each as it was published and as it runs when it really skips."""
