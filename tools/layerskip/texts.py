"""Texts as the trainer wants them: many of one length in a tensor, and which of their places were said by the model."""

from dataclasses import dataclass

import torch


@dataclass
class Texts:
    """Each row is a text, filled up on the right. All on the device."""

    ids: torch.Tensor
    # At each place the token that the model holds likeliest for the next one; only behind what was asked.
    best: torch.Tensor
    # How many tokens were asked, and how many there are in all.
    asked: torch.Tensor
    ends: torch.Tensor

    def __len__(self):
        return len(self.ids)

    def some(self, rows, length=None):
        return Texts(self.ids[rows, :length], self.best[rows, :length], self.asked[rows], self.ends[rows])

    def said(self):
        """Places whose next token the model said."""
        at = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (at >= self.asked[:, None] - 1) & (at < self.ends[:, None] - 1)

    def full(self):
        """Places that have a next token."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.ends[:, None] - 1


def joined(parts) -> Texts:
    width = max(part.ids.shape[1] for part in parts)

    def wide(rows):
        return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))

    return Texts(
        torch.cat([wide(p.ids) for p in parts]), torch.cat([wide(p.best) for p in parts]),
        torch.cat([p.asked for p in parts]), torch.cat([p.ends for p in parts]),
    )


def of_rows(rows, device) -> Texts:
    """Rows of token ids of one length that nobody said, such as somebody's source code."""
    ids = torch.tensor(rows, device=device)
    ends = torch.full((len(rows),), ids.shape[1], device=device)
    return Texts(ids, torch.zeros_like(ids), ends, ends)


def once(texts: Texts, tokens: int, rng: torch.Generator, step: int = 64):
    """All texts in batches of like length, in any order, at most `tokens` a batch with what fills them up."""
    lengths = ((texts.ends + step - 1) // step * step).clamp(max=texts.ids.shape[1]).cpu()
    found = []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=rng)]
        found.extend((part, length) for part in rows.split(max(1, tokens // length)))
    for index in torch.randperm(len(found), generator=rng).tolist():
        rows, length = found[index]
        yield texts.some(rows.to(texts.ids.device), length)


def batches(texts: Texts, tokens: int, rng: torch.Generator):
    """The same for ever."""
    while True:
        yield from once(texts, tokens, rng)
