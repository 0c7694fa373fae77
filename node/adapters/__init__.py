"""LoRA adapters: their files, what the store keeps of them, and how many of them serve one batch at once.

``headers`` ``configuration`` ``directory`` read what comes from elsewhere; ``artifact`` and ``keeping`` are what the
store has; ``kernels`` ``choosing`` add adapters to a batch; ``slots`` ``loading`` ``attaching`` put them beside a
model's layers.
"""
