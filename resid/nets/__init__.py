"""Networks as `torch.nn.Module`s. They may use `resid.theory`, never `resid.lab`."""
