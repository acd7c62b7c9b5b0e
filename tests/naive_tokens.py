"""Tokens beside the map by definition: one query after the other, and a list of its keys.

Nothing of `attention/` is used but the config, the numbers in it and the names of the parameters.

    forward(mixer, x, tokens)       what mixer(x, tokens) must be: the map and the tokens
    exchange(mixer, tokens, h, w)   what messengers are after they have exchanged channels
    cost(mixer, h, w, tokens)       (projection, mixing, position, padding) in multiply-adds
    beside(mixer, h, w)             messengers of an (h, w) map; None where any number will do
"""

from __future__ import annotations

import math
from typing import NamedTuple

import naive
import naive_sra
import torch
import torch.nn.functional as F


class Cut(NamedTuple):
    """What attends together: (kind, number) of each query and of each key.

    Kind is "beside", "map" for positions of the padded map, or "key" for what sra reduces it to.
    """

    queries: list[tuple[str, int]]
    keys: list[tuple[str, int]]


def windows(branch: naive.Branch) -> dict[tuple[int, int], list[int]]:
    """The positions of the padded map in each window, row by row of windows."""
    found: dict[tuple[int, int], list[int]] = {}
    for position, at in enumerate(zip(*(t.tolist() for t in branch.spread("piece")), strict=True)):
        found.setdefault(at, []).append(position)
    return dict(sorted(found.items()))


def beside(mixer, h: int, w: int) -> int | None:
    if naive.kind_of(mixer) != "messenger":
        return None
    gh, gw = mixer.config.size
    return math.ceil(h / gh) * math.ceil(w / gw)


def cuts(mixer, h: int, w: int, tokens: int) -> list[Cut]:
    own = [("beside", i) for i in range(tokens)]
    if naive.kind_of(mixer) == "full":
        all_of_it = own + [("map", i) for i in range(h * w)]
        return [Cut(all_of_it, all_of_it)]
    if naive.kind_of(mixer) == "sra":
        keys = [("key", i) for i in range(len(naive_sra.cells(mixer, h, w)))]
        return [Cut(own + [("map", i) for i in range(h * w)], own + keys)]
    ((branch,),) = naive.layers(mixer, h, w)
    out = []
    for messenger, window in zip(own, windows(branch).values(), strict=True):
        both = [messenger, *(("map", position) for position in window)]
        out.append(Cut(both, both))
    return out


def _projected(mixer, p, x, tokens):
    """Queries, keys and values by (kind, number), (b, c) each."""
    h, w = x.shape[1:3]
    inputs = {("beside", i): tokens[:, i] for i in range(tokens.shape[1])}
    if naive.kind_of(mixer) == "sra":
        inputs |= {("map", i): x[:, i // w, i % w] for i in range(h * w)}
        for i, cell in enumerate(naive_sra.cells(mixer, h, w)):
            inputs["key", i] = naive_sra._key(p, mixer, x, cell)
        q, k, v = {}, {}, {}
        for place, value in inputs.items():
            q[place] = naive._linear(p, "q", value)
            k[place], v[place] = naive._linear(p, "kv", value).split(mixer.dim, dim=-1)
            if "v_bias" in p:
                v[place] = v[place] + p["v_bias"]
        return q, k, v
    ((branch,),) = naive.layers(mixer, h, w)
    padded = branch.pad(x)  # zeros where no token is, projected as any token
    inputs |= {("map", i): padded[:, i] for i in range(padded.shape[1])}
    of_each = {place: naive._qkv(p, "", value) for place, value in inputs.items()}
    return [{place: qkv[i] for place, qkv in of_each.items()} for i in range(3)]


def _term(p, position, head: int, query, keys) -> torch.Tensor:
    """(keys,): what is added to the scores of a query; position: (P, P) of the padded map, or 0."""
    out = p["proj.weight"].new_zeros(len(keys))
    if query[0] == "map" and torch.is_tensor(position):
        on_map = torch.tensor([kind == "map" for kind, _ in keys])
        places = torch.tensor([i for kind, i in keys if kind == "map"])
        out = out.masked_scatter(on_map, position[query[1], places])
    if "messenger_bias" in p:
        as_key, as_query = p["messenger_bias"][head]
        for number, key in enumerate(keys):
            if "beside" in (query[0], key[0]):
                added = as_query if query[0] == "beside" else as_key
                out = out + added * F.one_hot(torch.tensor(number), len(keys))
    return out


def forward(mixer, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p, config, d = dict(mixer.named_parameters()), mixer.config, mixer.dim // mixer.heads
    (h, w), kind = x.shape[1:3], naive.kind_of(mixer)
    branch = None if kind == "sra" else naive.layers(mixer, h, w)[0][0]
    scales = p.get("scores.logit_scale" if branch is None else f"{branch.prefix}logit_scale")
    q, k, v = _projected(mixer, p, x, tokens)
    bias = [
        naive._position(p, branch, config, head) if branch else 0 for head in range(mixer.heads)
    ]
    out = {}
    for cut in cuts(mixer, h, w, tokens.shape[1]):
        keys, values = (torch.stack([of[key] for key in cut.keys], dim=1) for of in (k, v))
        for query in cut.queries:
            heads = []
            for head in range(mixer.heads):
                c = slice(head * d, (head + 1) * d)
                one, all_keys = q[query][:, None, c], keys[..., c]  # (b, 1, d), (b, keys, d)
                if config.scores == "cosine":
                    one, all_keys = F.normalize(one, dim=-1), F.normalize(all_keys, dim=-1)
                    scale = scales[head].clamp(max=math.log(100)).exp()
                else:
                    scale = d**-0.5 if config.qk_scale is None else config.qk_scale
                logits = (one * all_keys).sum(-1) * scale
                logits = logits + _term(p, bias[head], head, query, cut.keys)
                heads.append((logits.softmax(-1)[..., None] * values[..., c]).sum(1))
            out[query] = torch.cat(heads, dim=-1)  # (b, c)
    positions = 0.0
    if getattr(config, "position", "none") == "lepe":
        of_map = torch.stack([v["map", i] for i in range(len(branch.real()))], dim=1)
        positions = naive._lepe(p, branch, config, of_map)
    n = h * w if branch is None else len(branch.real())
    on_map = torch.stack([out["map", i] for i in range(n)], dim=1) + positions  # (b, n, c)
    own = torch.stack([out["beside", i] for i in range(tokens.shape[1])], dim=1)
    on_map, own = (naive._linear(p, "proj", y) for y in (on_map, own))
    return on_map.unflatten(1, (h, w)) if branch is None else branch.crop(on_map), own


def exchange(mixer, tokens: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Messenger j of a region of r x r gets part j of the channels of messenger 0, 1, 2, ..."""
    gh, gw = mixer.config.size
    r, rows, cols = mixer.config.region, math.ceil(h / gh), math.ceil(w / gw)
    width = tokens.shape[2] // r**2
    out = torch.empty_like(tokens)
    for row in range(rows):
        for col in range(cols):
            first_row, first_col = row - row % r, col - col % r
            part = (row % r) * r + col % r
            taken = []
            for i in range(first_row, first_row + r):
                for j in range(first_col, first_col + r):
                    there = i < rows and j < cols
                    giver = tokens[:, i * cols + j] if there else torch.zeros_like(tokens[:, 0])
                    taken.append(giver[:, part * width : (part + 1) * width])
            out[:, row * cols + col] = torch.cat(taken, dim=-1)
    return out


def cost(mixer, h: int, w: int, tokens: int) -> tuple[int, int, int, int]:
    """That of the map alone, and each further layer and pair, one by one."""
    projection, mixing, position, padding = naive.cost(mixer, h, w)
    projection += 4 * mixer.dim**2 * tokens
    real = [True] * (h * w)
    if naive.kind_of(mixer) != "sra":
        real = naive.layers(mixer, h, w)[0][0].real().tolist()
    for cut in cuts(mixer, h, w, tokens):
        for query in cut.queries:
            for key in cut.keys:
                if "beside" in (query[0], key[0]):
                    mixing += 2 * mixer.dim
                    pads = [kind == "map" and not real[i] for kind, i in (query, key)]
                    padding += 2 * mixer.dim * any(pads)
    return projection, mixing, position, padding
