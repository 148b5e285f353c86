"""The training loop of the papers without any of the machinery: one sample at a time, schedules and steps by hand."""

import numpy as np
import torch
from torch.nn import functional as F

from resid.data.batches import draw_crops, draw_order
from resid.data.loading import load_dataset
from resid.training.recipe import build_network


def slow_training(recipe):
    """Final weights and the mean loss of each epoch, for recipes of whole epochs with milestones or a constant rate."""
    split, model = load_dataset(recipe.dataset), build_network(recipe)
    pixels = split.images.double().numpy()
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    names = {p: n for n, p in model.named_parameters()}
    convolutions = {names[m.weight] for m in model.modules() if isinstance(m, torch.nn.Conv2d)}
    velocity = {p: torch.zeros_like(p) for p in model.parameters()}
    n, losses = len(pixels), []
    for epoch in range(recipe.epochs):
        rate = recipe.lr
        for milestone in recipe.milestones:
            if epoch >= milestone:
                rate = rate * recipe.factor
        crops = draw_crops(n, recipe.seed, epoch, recipe.pad, recipe.flip).tolist()
        order = draw_order(n, recipe.seed, epoch).tolist()
        total = 0.0
        for first in range(0, n, recipe.batch):
            chosen = order[first : first + recipe.batch]
            images = torch.stack([_image(pixels[i], crops[i], recipe, mean, std) for i in chosen])
            loss = F.cross_entropy(model(images), split.labels[chosen])
            total += loss.item() * len(chosen)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    if recipe.decay == "all" or names[parameter] in convolutions:
                        gradient = gradient + recipe.weight_decay * parameter
                    velocity[parameter] = recipe.momentum * velocity[parameter] + gradient
                    direction = velocity[parameter]
                    if recipe.nesterov:
                        direction = gradient + recipe.momentum * velocity[parameter]
                    parameter -= rate * direction
        losses.append(total / n)
    return model.state_dict(), losses


def _image(pixels, crop, recipe, mean, std):
    """One augmented image, float32."""
    row, column, flipped = crop
    height, width = pixels.shape[1:]
    if recipe.normalize == "dataset":
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    edge = ((0, 0), (recipe.pad, recipe.pad), (recipe.pad, recipe.pad))
    pixels = np.pad(pixels, edge, mode="constant" if recipe.fill == "zeros" else "reflect")
    pixels = pixels[:, row : row + height, column : column + width]
    if flipped:
        pixels = pixels[:, :, ::-1]
    if recipe.normalize == "image":
        pixels = (pixels - pixels.mean()) / max(pixels.std(), pixels.size**-0.5)
    return torch.from_numpy(np.ascontiguousarray(pixels)).float()
