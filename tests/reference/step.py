"""A literal implementation of Eq. 7 in float64: two forwards, one loss, one backward."""

import torch.nn.functional as F
from reference.temporal_augment import attack
from torch.nn.modules.batchnorm import _BatchNorm


def taf_losses(clean_model, adversarial_model, x, labels, targets, rows, alpha, **options):
    """The two models share every parameter but the batch norms'. -> loss, clean loss, adversarial loss."""
    x_adv, certain = attack(clean_model, x, targets, rows, **options)
    return *losses_at(clean_model, adversarial_model, x, x_adv, labels, rows, alpha), certain


def losses_at(clean_model, adversarial_model, x, x_adv, labels, rows, alpha):
    clean_loss = F.cross_entropy(clean_model(x), labels)
    adv_loss = F.cross_entropy(adversarial_model(x_adv), labels[rows])
    return alpha * clean_loss + (1 - alpha) * adv_loss, clean_loss, adv_loss


def share_all_but_batch_norm(model, other):
    """Make ``other`` use ``model``'s parameters outside batch norms."""
    for name, module in other.named_modules():
        if not isinstance(module, _BatchNorm):
            for key in module._parameters:
                module._parameters[key] = model.get_submodule(name)._parameters[key]
