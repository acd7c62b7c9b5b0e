"""Realistic mistakes, each with the tests that must see it.

    python tests/planted.py            plants every one in a copy of the tree; prints what is seen
    python tests/planted.py groups     only those whose file or description holds this word

tests/test_planted.py does so in the slow tier, and keeps the list true to the code in the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # as a script has its own folder there

from transom import packages  # noqa: E402

COPIED = (*packages.NAMES, "tests", "docs", "README.md", "LICENSE", "pyproject.toml", "setup.cfg")
SEEN = 1  # pytest's exit code where a test fails; 2 to 5 is what could not be run


class Mistake(NamedTuple):
    """`text` stands once in `file`, and `wrong` takes its place.

    tests: what must fail then, as pytest takes it, without the folder.  what: in a few words.
    """

    file: str
    text: str
    wrong: str
    tests: str
    what: str

    @property
    def selection(self) -> list[str]:
        return [f"tests/{test}" for test in self.tests.split()]

    @property
    def title(self) -> str:
        return f"{self.file}: {self.what}"


MISTAKES = [
    # -- attention -------------------------------------------------------------------------------
    Mistake(
        "attention/mixers/deformable.py",
        "align_corners=True",
        "align_corners=False",
        "test_golden.py::test_equals_the_authors_code[dat/sq64_lsd]",
        "points in other coordinates",
    ),
    Mistake(
        "attention/mixers/deformable.py",
        "unit(p + 0.5, n)",
        "unit(p, n)",
        "test_golden.py::test_equals_the_authors_code[dat/sq64_lsd]",
        "the regular grid inside the map",
    ),
    Mistake(
        "attention/mixers/deformable.py",
        "xy = points.flip(-1)",
        "xy = points",
        "test_attention_definition.py::test_values[deformable]",
        "rows of points taken for columns",
    ),
    Mistake(
        "attention/mixers/axial_deeplab.py",
        "return place[:, None] - place",
        "return place - place[:, None]",
        "test_axial_deeplab.py::test_equals_the_authors_code",
        "positions of the key minus the query",
    ),
    Mistake(
        "attention/mixers/axial_deeplab.py",
        "torch.stack((values.mT, offsets.mT), dim=3)",
        "torch.stack((values.mT, offsets.mT), dim=2)",
        "test_axial_deeplab.py::test_equals_the_authors_code",
        "values and positions stacked instead of interleaved",
    ),
    Mistake(
        "attention/geometry/axis.py",
        "before = (padded - length) // 2 if even else 0",
        "before = (padded - length + 1) // 2 if even else 0",
        "test_groups.py::test_even_padding_has_its_smaller_part_first",
        "the larger part of even padding first",
    ),
    Mistake(
        "attention/geometry/tiles.py",
        "key = torch.minimum(key, limit - self.keys).clamp(min=0)",
        "key = key.clamp(min=0)",
        "test_attention_definition.py::test_values[neighbourhood]",
        "the last tile's keys reach past the map",
    ),
    Mistake(
        "attention/geometry/tiles.py",
        "low = torch.minimum((query - self.reach).clamp(min=0), limit - self.window)",
        "low = query - self.reach",
        "test_attention_definition.py::test_values[neighbourhood]",
        "windows that do not move inward at borders",
    ),
    Mistake(
        "attention/softmax/tiled_attention.py",
        "row = step - torch.arange(th, device=q.device)[:, None]",
        "row = step.flip(0) - torch.arange(th, device=q.device)[:, None]",
        "test_attention_definition.py::test_values[halo]",
        "relative rows upside down",
    ),
    Mistake(
        "attention/softmax/tiled_attention.py",
        "number = (row * tiles.cols.n + col).argsort()[number]",
        "number = (row * tiles.cols.n + col)[number]",
        "test_attention_definition.py::test_values[neighbourhood]",
        "outputs of tiles at the places of others",
    ),
    Mistake(
        "backbones/parts/stem.py",
        "inner = inner.narrow(axis, 0, (x.shape[axis] + 1) // 2)",
        "pass",
        "test_tiles.py::test_two_convolutions_pad_with_zeros",
        "the first convolution's bias in the second one's pads",
    ),
    Mistake(
        "attention/geometry/groups.py",
        "return rolled(x, self.rows.shift, self.cols.shift) if",
        "return rolled(x, self.cols.shift, self.rows.shift) if",
        "test_attention_definition.py::test_values[window]",
        "height and width of a shift exchanged",
    ),
    Mistake(
        "attention/geometry/groups.py",
        "lambda p, a: p >= a.padded - a.shift",
        "lambda p, a: p > a.padded - a.shift",
        "test_attention_definition.py::test_locality[window]",
        "the mask of a shift one token late",
    ),
    Mistake(
        "attention/geometry/groups.py",
        "(origin < a.before) | (origin >= a.before + a.length)",
        "(origin < a.before)",
        "test_attention_definition.py::test_values[window]",
        "pads after the map not hidden",
    ),
    Mistake(
        "attention/geometry/axis.py",
        "return [self.group_of(p - self.shift) for p in self._real()]",
        "return [self.group_of(p) for p in self._real()]",
        "test_attention_definition.py::test_locality[window]",
        "the region of a shifted window is that of the other block",
    ),
    Mistake(
        "attention/geometry/axis.py",
        "tally[self.group_of((p - self.shift) % self.padded)] += 1",
        "tally[self.group_of(p)] += 1",
        "test_groups.py::test_pairs_of_real_tokens",
        "pads counted as if windows were not shifted",
    ),
    Mistake(
        "attention/mixers/window.py",
        "self.config.shift and self.index % 2",
        "self.config.shift and self.index % 2 == 0",
        "test_attention_definition.py::test_locality[window]",
        "even blocks shift instead of odd ones",
    ),
    Mistake(
        "attention/mixers/window.py",
        "axis(w, gw, shift=gw // 2 if shifted else 0)",
        "axis(w, gw, shift=gh // 2 if shifted else 0)",
        "test_attention_definition.py::test_values[window]",
        "columns shift by half the height",
    ),
    Mistake(
        "attention/softmax/scores.py",
        "else (dim // heads) ** -0.5",
        "else dim**-0.5",
        "test_attention_definition.py::test_values[full]",
        "scores scaled by the width instead of the head's",
    ),
    Mistake(
        "attention/softmax/scores.py",
        "self.logit_scale.clamp(max=math.log(100)).exp()",
        "self.logit_scale.exp()",
        "test_attention_definition.py::test_values[cosine]",
        "the scale of cosine scores without its bound",
    ),
    Mistake(
        "attention/softmax/branch.py",
        "return self.config.mask_padding and groups.padded",
        "return False",
        "test_attention_definition.py::test_values[shuffle]",
        "mask_padding ignored",
    ),
    Mistake(
        "attention/softmax/branch.py",
        "padding += self.lepe.cost(groups, pads)",
        "padding += self.lepe.cost(groups, groups.tokens)",
        "test_attention_definition.py::test_cost[cross]",
        "real tokens counted as pads",
    ),
    Mistake(
        "attention/softmax/layers.py",
        "q, v = q + self.q_bias, v + self.v_bias",
        "q, v = q + self.v_bias, v + self.q_bias",
        "test_attention_definition.py::test_values[cosine]",
        "biases of queries and values exchanged",
    ),
    Mistake(
        "attention/mixers/axial.py",
        "else (_Columns, _Rows)",
        "else (_Rows, _Columns)",
        "test_attention_definition.py::test_values[axial]",
        "the two layers in the other order",
    ),
    Mistake(
        "attention/mixers/cross.py",
        "vertical = Groups(axis(h, h), axis(w, sw, even=True))",
        "vertical = Groups(axis(h, h), axis(w, sh, even=True))",
        "test_attention_definition.py::test_locality[cross]",
        "vertical stripes as wide as horizontal ones are high",
    ),
    Mistake(
        "attention/mixers/pale.py",
        'key_bias = config.qkv_bias and config.scores == "dot"',
        "key_bias = config.qkv_bias",
        "test_attention_definition.py::test_cosine_scores_have_no_key_bias[pale]",
        "a bias of keys with cosine scores",
    ),
    Mistake(
        "attention/mixers/pale.py",
        "        if self.config.mask_padding:\n",
        "        if not self.config.mask_padding:\n",
        "test_attention_definition.py::test_locality[pale]",
        "a region without the pads that stand beside real tokens",
    ),
    Mistake(
        "attention/mixers/shuffle.py",
        "if not self.index % 2:",
        "if not self.index:",
        "test_attention_definition.py::test_values[shuffle]",
        "from the second block on all are dilated",
    ),
    Mistake(
        "attention/geometry/axis.py",
        "return p // (self.interval * self.extent) * self.interval + p % self.interval",
        "return p // self.extent",
        "test_groups.py::test_an_interval_is_between_neighbours_and_the_whole_axis",
        "the region of a cut of cuts is that of runs",
    ),
    Mistake(
        "attention/geometry/axis.py",
        "groups = self.n // self.interval, self.interval",
        "groups = self.interval, self.n // self.interval",
        "test_groups.py::test_a_partition_of_two_cuts_is_reversed",
        "as many runs as there should be groups in one",
    ),
    Mistake(
        "attention/configs/windows.py",
        "and self.interval is not None and gh == gw",
        "and gh == gw",
        "test_registry.py::test_windows_at_an_interval_shrink_as_the_authors_have_it",
        "Shuffle's windows shrink, too",
    ),
    Mistake(
        "attention/softmax/dpb.py",
        "torch.arange(1 - length, length,",
        "torch.arange(length - 1, -length, -1,",
        "test_attention_definition.py::test_values[shuffle]",
        "steps from query to key",
    ),
    Mistake(
        "attention/softmax/dpb.py",
        "layers = self.width * (2 + 2 * self.width + self.heads)",
        "layers = self.width * (2 + self.width + self.heads)",
        "test_attention_definition.py::test_cost[shuffle]",
        "a layer of the dynamic bias left out of its cost",
    ),
    Mistake(
        "attention/geometry/axis.py",
        "before = smaller(extent - shift,",
        "before = smaller(shift,",
        "test_attention_definition.py::test_locality[token_mlp]",
        "as many zeros before as should stand behind",
    ),
    Mistake(
        "attention/geometry/symbolic.py",
        "return torch.where(p < length, p, p - length)",
        "return torch.where(p <= length, p, p - length)",
        "test_attention_definition.py::test_locality[window]",
        "one position rolled beyond the end",
    ),
    Mistake(
        "attention/softmax/grouped_attention.py",
        "scale=scale)\n        return y.unflatten(1, (n, m))",
        "scale=None)\n        return y.unflatten(1, (n, m))",
        "test_attention_definition.py::test_values[window]",
        "no scale of one's own for batches with a mask",
    ),
    Mistake(
        "attention/softmax/position.py",
        "return 16 * torch.sigmoid(self.mlp(coords))",
        "return torch.sigmoid(self.mlp(coords))",
        "test_attention_definition.py::test_values[cosine]",
        "a continuous bias without its factor",
    ),
    Mistake(
        "attention/softmax/position.py",
        "norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)",
        "norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)",
        "test_attention_inputs.py::test_half_precision_is_finite",
        "norms in half precision",
    ),
    Mistake(
        "attention/execution/cache.py",
        "key = id(owner), key",
        "key = None, key",
        "test_backends.py::test_parts_are_the_reference",
        "one mask for the blocks of a stage",
    ),
    Mistake(
        "attention/execution/cache.py",
        "        _tables.reset(token)",
        "        pass",
        "test_backends.py::test_every_write_is_answered",
        "tables outlive the forward",
    ),
    Mistake(
        "attention/configs/windows.py",
        "if min(h, w) <= gh:",
        "if min(h, w) < gh:",
        "test_backbones.py::test_small_maps_of_the_authors",
        "a window as large as its map still shifts",
    ),
    Mistake(
        "attention/configs/lines.py",
        "or h > self.size[0] or w > self.size[1]:",
        "or h > self.size[0]:",
        "test_backbones.py::test_a_stripe_that_covers_one_side_alone_stays",
        "a wide map taken for a covered one",
    ),
    Mistake(
        "attention/configs/registry.py",
        "return tuple(sorted(_configs))",
        "return tuple(_configs)",
        "test_registry.py",
        "mixers in the order of their registration",
    ),
    Mistake(
        "attention/configs/config.py",
        "if dim % heads:",
        "if dim < heads:",
        "test_registry.py::test_a_width_that_no_mixer_has_is_refused",
        "widths that heads do not divide are let through",
    ),
    Mistake(
        "transom/fields.py",
        "return read_count(parts[0]), read_count(parts[-1])",
        "return read_count(parts[-1]), read_count(parts[0])",
        "test_backbones.py::test_rectangular_windows_are_height_first",
        "sizes read width first",
    ),
    Mistake(
        "attention/execution/chunks.py",
        "n = max(-(-images // most), 1)",
        "n = max(images // most, 1)",
        "test_backends.py::test_a_batch_is_cut_into_equal_parts",
        "parts larger than the bound",
    ),
    Mistake(
        "attention/execution/backends.py",
        "if y.shape[:2] == (b, n):",
        "if y.shape[1] == n:",
        "test_backends.py::test_small_parts_are_the_same_map",
        "the first images for all",
    ),
    Mistake(
        "attention/execution/autotune.py",
        "_best({name: min(rounds)",
        "_best({name: max(rounds)",
        "test_autotune.py::test_the_least_of_all_rounds_counts",
        "the slowest round counts",
    ),
    Mistake(
        "attention/execution/autotune.py",
        "if _ranks() > 1:",
        "if _ranks() > 2:",
        "test_autotune.py::test_ranks_never_measure_apart",
        "two ranks measure apart",
    ),
    Mistake(
        "attention/execution/dispatch.py",
        'return f"{module.signature()} {where}{threads}"',
        'return f"{module.signature()} {mode}{threads}"',
        "test_autotune.py::test_a_kind_of_call_is_measured_anew",
        "a choice for every type and size",
    ),
    Mistake(
        "attention/execution/dispatch.py",
        "        if module.training:\n",
        "        if False:\n",
        "test_backends.py::test_training_takes_the_reference",
        "parts in training mode, where drop path draws once for each",
    ),
    Mistake(
        "attention/mixer.py",
        " block={self.index % 2}",
        "",
        "test_autotune.py::test_a_kind_of_call_is_measured_anew",
        "odd blocks take what even ones measured",
    ),
    Mistake(
        "attention/geometry/reduced.py",
        "length + ratio - smaller(length, ratio)",
        "round_up(length, ratio)",
        "test_pvt.py::test_cells_are_neighbours_and_whole",
        "the remainder padded instead of dropped",
    ),
    Mistake(
        "attention/geometry/reduced.py",
        "-(-(i + 1) * length // n)",
        "(i + 1) * length // n",
        "test_pvt.py::test_pooled_cells_are_those_of_torch",
        "pooled cells that do not overlap",
    ),
    Mistake(
        "attention/geometry/reduced.py",
        "seen[query] = self.n > 1",
        "seen[query] = True",
        "test_attention_definition.py::test_locality[sra]",
        "the query read where one key leaves it no choice",
    ),
    Mistake(
        "attention/geometry/reduced.py",
        "return self.rows.read * self.cols.read - self.rows.used * self.cols.used",
        "return self.rows.read * self.cols.read - self.tokens",
        "test_attention_definition.py::test_cost[sra]",
        "tokens that no key sees taken from the pads",
    ),
    Mistake(
        "attention/mixers/sra.py",
        "k, v = (copied(t).flatten(1, 2) for t in kv.chunk(2, dim=-1))",
        "v, k = (copied(t).flatten(1, 2) for t in kv.chunk(2, dim=-1))",
        "test_attention_definition.py::test_values[sra] test_golden.py",
        "keys and values exchanged",
    ),
    Mistake(
        "attention/mixers/sra.py",
        "return y if self.config.pool is None else F.gelu(y)",
        "return y",
        "test_attention_definition.py::test_values[sra]",
        "no GELU after the norm of a pooled map",
    ),
    Mistake(
        "attention/mixers/sra.py",
        "layers = 2 * keys.tokens + 2 * keys.n",
        "layers = 4 * keys.tokens",
        "test_attention_definition.py::test_cost[sra]",
        "keys and values counted for every token",
    ),
    Mistake(
        "attention/configs/reduced.py",
        'if self.pool is not None and (self.ratio != RATIO or self.remainder != "drop"):',
        "if self.pool is not None and self.ratio != RATIO:",
        "test_pvt.py::test_options",
        "a remainder beside a pool",
    ),
    # -- backbones -------------------------------------------------------------------------------
    Mistake(
        "backbones/parts/local.py",
        "return x + self._around(self.norm(x))",
        "return self._around(self.norm(x))",
        "test_layers.py::test_a_local_convolution_stands_between_mixer_and_mlp",
        "no residual around the local convolution",
    ),
    Mistake(
        "backbones/parts/local.py",
        "padding=spec.local // 2",
        "padding=spec.local // 2, padding_mode='replicate'",
        "test_golden.py::test_equals_the_authors_code",
        "the map continued beyond its edges for the local convolution",
    ),
    Mistake(
        "backbones/model/block.py",
        "return x if self.local is None else self.local(x)",
        "return x if self.local is None else self.drop_path(self.local(x))",
        "test_backbones.py::test_drop_path_leaves_the_local_convolution",
        "stochastic depth around the local convolution",
    ),
    Mistake(
        "backbones/parts/stem.py",
        "convs))\n\n    @property\n    def window(self) -> Window:\n        return Window(7, 4, 3)",
        "convs))\n\n    @property\n    def window(self) -> Window:\n        return Window(7, 4, 2)",
        "test_regions.py::test_what_a_convolution_reads_is_what_its_gradient_reaches",
        "the window of a deep stem a pixel too far down",
    ),
    Mistake(
        "backbones/parts/stem.py",
        "(4 * self.conv.weight.numel() + sum(",
        "(2 * self.conv.weight.numel() + sum(",
        "test_variants.py::test_numbers_are_exact",
        "the first convolution of a deep stem on a quarter of its map",
    ),
    Mistake(
        "backbones/parts/resample.py",
        "kernel, stride, (kernel - stride) // 2)",
        "kernel, stride, kernel // 2)",
        "test_crossformer.py::test_equals_its_definition",
        "kernels of several scales padded as if they had stride 1",
    ),
    Mistake(
        "backbones/names/shuffle.py",
        'ours + "local.norm.{x}"',
        'ours + "norm2.{x}"',
        "test_golden.py::test_equals_the_authors_code",
        "the norm of Shuffle's local convolution for that of its MLP",
    ),
    Mistake(
        "analysis/models/footprint.py",
        "sides = [spec.local,",
        "sides = [0,",
        "test_regions.py::test_a_local_convolution_reads_around_what_its_mixer_reads",
        "a local convolution reads nothing around its token",
    ),
    Mistake(
        "backbones/parts/layout.py",
        "F.pad(x, (0, after_w, 0, after_h))",
        "F.pad(x, (after_w, 0, after_h, 0))",
        "test_layers.py",
        "odd images padded at the top and left",
    ),
    Mistake(
        "backbones/parts/stem.py",
        '"overlap": p // 2,',
        '"overlap": kernel // 2,',
        "test_golden.py::test_equals_the_authors_code",
        "the padding of one stem for the other",
    ),
    Mistake(
        "backbones/parts/mlp.py",
        "return x * keep.to(x.dtype) / (1 - self.rate)",
        "return x * keep.to(x.dtype)",
        "test_backbones.py::test_drop_path_keeps_the_mean_and_drops_whole_images",
        "drop path without its scale",
    ),
    Mistake(
        "backbones/model/block.py",
        "for norm in (self.norm1, self.norm2):",
        "for norm in (self.norm1,):",
        "test_backbones.py::test_norms_on_the_residual_start_at_zero",
        "a norm on the residual that does not start at 0",
    ),
    Mistake(
        "backbones/model/block.py",
        '            parts.append(Macs("cpe", "position", h * w * self.cpe.weight.numel()))\n',
        "            pass\n",
        "test_backbones.py::test_positions_before_a_block_are_counted",
        "positions before a block not counted",
    ),
    Mistake(
        "backbones/model/backbone.py",
        "rates = [spec.drop_path * i / max(depth - 1, 1) for i in range(depth)]",
        "rates = [spec.drop_path * i / max(depth, 1) for i in range(depth)]",
        "test_backbones.py::test_drop_path_acts_in_training_only",
        "the last block drops less than the rate",
    ),
    Mistake(
        "backbones/model/backbone.py",
        "stage_rates, rates = rates[: stage.depth], rates[stage.depth :]",
        "stage_rates = rates[: stage.depth]",
        "test_backbones.py::test_drop_path_acts_in_training_only",
        "drop path starts anew in every stage",
    ),
    Mistake(
        "backbones/model/backbone.py",
        "stage.checkpointing = per if enable else None",
        "stage.checkpointing = per",
        "test_backbones.py::test_checkpointing_is_switched_on_and_off",
        "checkpointing that is never off",
    ),
    Mistake(
        "backbones/specs/spec.py",
        "(-(-h // 2**i), -(-w // 2**i))",
        "(-(-h // 2**i), w // 2**i)",
        "test_backbones.py::test_grids_round_up_once",
        "widths round down",
    ),
    Mistake(
        "backbones/specs/stage.py",
        "(config, configs[:i].count(config))",
        "(config, i)",
        "test_backbones.py::test_index_counts_equal_configs_only",
        "the index of a block counts other mixers",
    ),
    Mistake(
        "backbones/specs/construct.py",
        "replace(last, dim=2 * last.dim, heads=2 * last.heads)",
        "replace(last, dim=2 * last.dim)",
        "test_hybrids.py::test_stages_are_cut_or_continued",
        "new stages with the heads of the last",
    ),
    Mistake(
        "backbones/specs/notation.py",
        "if (stage, field) in edits:",
        "if False:",
        "test_hybrids.py::test_the_column_is_that_of_the_wrong_token",
        "the later of two edits wins silently",
    ),
    Mistake(
        "backbones/specs/error_column.py",
        "column = edit.column + len(edit.text) - len(edit.value)\n",
        "column = edit.column + len(edit.text) - len(edit.value) + 1\n",
        "test_hybrids.py::test_the_column_is_that_of_the_wrong_token",
        "columns off by one",
    ),
    Mistake(
        "backbones/specs/aliases.py",
        "saved = read() | {name: text}",
        "saved = {name: text}",
        "test_hybrids.py::test_an_alias_is_saved_read_and_edited",
        "a new alias loses the others",
    ),
    Mistake(
        "backbones/specs/writing.py",
        'if field not in ("name", "stages") and',
        'if field not in ("name", "stages", "norm") and',
        "test_hybrids.py::test_a_spec_is_written_and_read_back",
        "norms left out of the notation",
    ),
    Mistake(
        "backbones/diff.py",
        "change = 100 * (y - x) / x if x else None",
        "change = 100 * (y - x) / y if y else None",
        "test_hybrids.py::test_a_stage_more_is_a_row",
        "percent of the wrong one",
    ),
    Mistake(
        "backbones/show.py",
        "share, beside = sizes[i].macs / overall.macs,",
        "share, beside = sizes[i].params / overall.params,",
        "test_hybrids.py::test_the_strip_has_the_share_of_the_macs",
        "a share of the parameters for that of the MACs",
    ),
    Mistake(
        "backbones/model/sizes.py",
        'return 0 if first == "stem" else stages',
        'return 0 if first == "stem" else stages - 1',
        "test_hybrids.py::test_the_head_and_the_stem_have_their_rows",
        "the head counted in the last stage",
    ),
    Mistake(
        "backbones/fit.py",
        'return cli.AGREED if abs(row["error_%"]) <= 100 * TOLERANCE',
        'return cli.AGREED if row["error_%"] <= 100 * TOLERANCE',
        "test_hybrids.py::test_the_exit_code_is_one_beyond_one_percent_on_either_side",
        "exit code 0 far under the budget",
    ),
    Mistake(
        "backbones/fit.py",
        '"G": 10**9,',
        '"G": 2**30,',
        "test_hybrids.py::test_an_amount_has_its_unit",
        "billions in units of 2^30",
    ),
    Mistake(
        "backbones/files/storage.py",
        "            temporary.chmod(mode)\n",
        "            pass\n",
        "test_weights.py::test_links_and_modes_are_kept",
        "the mode of a file lost",
    ),
    Mistake(
        "transom/packages.py",
        "if found != ours:",
        "if found is None:",
        "test_structure.py::test_foreign_attention_is_named",
        "somebody else's package let through",
    ),
    Mistake(
        "backbones/weights/reference_models.py",
        "return max(extent_of(stage.mixers[0]) for stage in spec.stages)",
        "return extent_of(spec.stages[-1].mixers[0])",
        "test_originals.py::test_the_window_is_the_one_before_any_shrinks",
        "the shrunken window of the last stage for all",
    ),
    Mistake(
        "backbones/export.py",
        "worst = max(worst, math.inf if math.isnan(difference) else difference)",
        "worst = max(worst, difference)",
        "test_export.py::test_check_sees_another_model",
        "NaN is no difference",
    ),
    Mistake(
        "backbones/files/hub.py",
        "revision=match[2]",
        "revision=None",
        "test_originals.py::test_a_hub_file_is_of_the_revision_that_is_named",
        "the revision of a hub file ignored",
    ),
    Mistake(
        "backbones/families/swin.py",
        "_TO24 = _cosine(24, 24, 24, 12,",
        "_TO24 = _cosine(24, 24, 24, 24,",
        "test_variants.py::test_mixers_equal_the_publication",
        "the wrong window in one stage",
    ),
    Mistake(
        "backbones/weights/resize.py",
        "picture = tensor.T.reshape(1, -1, h, w)",
        "picture = tensor.T.reshape(1, -1, w, h)",
        "test_resize.py::test_a_table_that_varies_along_one_axis_still_does",
        "a table that is not square read by columns",
    ),
    Mistake(
        "backbones/parts/mlp.py",
        "x = nhwc(self.conv(nchw(self._before(self.fc1(x)))))",
        "x = nhwc(self._before(self.conv(nchw(self.fc1(x)))))",
        "test_pvt.py::test_equals_timm[pvt_v2_li]",
        "the ReLU of a convolution's MLP after it",
    ),
    Mistake(
        "backbones/parts/mlp.py",
        "return super().cost(h, w) + h * w * self.conv.weight.numel()",
        "return super().cost(h, w)",
        "test_pvt.py::test_costs_of_the_words",
        "the convolution of an MLP not counted",
    ),
    Mistake(
        "backbones/model/stage.py",
        "if i == 0 and self.cpe is not None:",
        "if i == len(self.blocks) - 1 and self.cpe is not None:",
        "test_pvt.py::test_positions_stand_after_the_first_block",
        "positions after the last block of a stage",
    ),
    Mistake(
        "backbones/model/backbone.py",
        "spec.final_norm and not spec.stage_norms",
        "spec.final_norm",
        "test_pvt.py::test_no_norm_is_doubled",
        "the norm of the last stage doubled",
    ),
    Mistake(
        "backbones/model/decay.py",
        '            (STAGES + r"\\.norm", LAST),\n',
        "",
        "test_pvt.py::test_layers_of_learning_rates",
        "the norms of stages learn as the head",
    ),
    Mistake(
        "backbones/rates.py",
        "bisect_right(layers[root], layer) + 1",
        "bisect_right(layers[root], layer)",
        "test_rates.py::test_timms_rule_is_timms",
        "every layer learns as the one before it",
    ),
    Mistake(
        "backbones/names/pvt.py",
        'rule("norm{i+1}.{x}", "stages.{i}.norm.{x}")',
        'rule("norm{i+1}.{x}", "out_norms.{i}.{x}")',
        "test_pvt.py::test_names_of_the_authors",
        "the norms of stages as norms of levels",
    ),
    Mistake(
        "backbones/weights/partial.py",
        "if asked.stage_norms != theirs.stage_norms:",
        "if False:",
        "test_partial.py",
        "norms of stages taken from weights without",
    ),
    Mistake(
        "analysis/models/footprint.py",
        'sides = [spec.local, 3 * ("conv" in spec.mlp), 3 * after]',
        "sides = [spec.local, 3 * after]",
        "test_regions.py::test_a_backbones_footprint_is_its_gradient",
        "a footprint without the convolutions of MLPs",
    ),
    Mistake(
        "analysis/papers/ledger.py",
        'return Count(macs - products, macs, f"{formula} - attention products")',
        'return Count(macs, macs, f"{formula} - attention products")',
        "test_audit.py::test_twins_only_fits_without_attention_products",
        "Twins' figures with attention products",
    ),
    # -- analysis --------------------------------------------------------------------------------
    Mistake(
        "analysis/counting/count.py",
        " or any(tally.uncounted for tally in tallies)",
        "",
        "test_flops.py::test_an_unknown_operator_is_an_error_that_names_it",
        "unknown operators do not matter",
    ),
    Mistake(
        "analysis/counting/count.py",
        "need = weights + torch_tally.peak_bytes",
        "need = torch_tally.peak_bytes",
        "test_flops.py::test_a_budget_of_memory_holds_the_weights",
        "a budget without the weights",
    ),
    Mistake(
        "analysis/counting/counters.py",
        "self.peak = max(self.peak, self.now)",
        "self.peak = self.now",
        "test_flops.py::test_the_memory_estimate_is_of_the_largest_moment",
        "memory at the end for the most memory",
    ),
    Mistake(
        "analysis/counting/operator_costs.py",
        "k[-2] * (q[-1] + v[-1])",
        "k[-2] * 2 * q[-1]",
        "test_flops.py::test_handles_equal_torchs_counter",
        "values as wide as queries",
    ),
    Mistake(
        "analysis/flops.py",
        "return cli.AGREED if all(report.agree for report in reports)",
        "return cli.AGREED if any(report.agree for report in reports)",
        "test_flops.py::test_one_row_that_differs_is_exit_code_one",
        "exit code 0 where one row agrees",
    ),
    Mistake(
        "analysis/checking/certificates.py",
        "(y[both] - y[one] - y[two] + base)",
        "(y[both] - y[one] - y[two])",
        "test_certify.py::test_what_is_ruled_out_is_what_theory_says",
        "the image without patches is left out of a sum",
    ),
    Mistake(
        "analysis/checking/certificates.py",
        "to = (r[up ^ i], c[left ^ j])",
        "to = (r[up], c[left])",
        "test_certify.py::test_what_is_ruled_out_is_what_theory_says",
        "both patches in one place",
    ),
    Mistake(
        "analysis/checking/placements.py",
        "image[one], image[two] = blank[two], blank[one]",
        "image[one], image[two] = blank[two], blank[two]",
        "test_certify.py::test_what_is_ruled_out_is_what_theory_says",
        "a column is copied where two are exchanged",
    ),
    Mistake(
        "analysis/checking/placements.py",
        "order = torch.cat([line[n - half :], line[half : n - half], line[:half]])",
        "order = line.flip(0)",
        "test_certify.py::test_what_is_ruled_out_is_what_theory_says",
        "halves are mirrored where they are exchanged",
    ),
    Mistake(
        "analysis/checking/certificates.py",
        "max(draw[relation] for draw in draws)",
        "min(draw[relation] for draw in draws)",
        "test_certify.py::test_a_value_is_the_largest_of_all_seeds_and_does_not_depend_on_the_weights_given",
        "the least violation of all seeds",
    ),
    Mistake(
        "analysis/checking/certificates.py",
        "double = copy.deepcopy(model).to(",
        "double = model.to(",
        "test_certify.py::test_a_value_is_the_largest_of_all_seeds_and_does_not_depend_on_the_weights_given",
        "certifying changes the weights",
    ),
    Mistake(
        "analysis/checking/placements.py",
        "return y.mean((1, 2) if last else (2, 3))",
        "return y.mean((2, 3))",
        "test_certify.py::test_any_output_is_pooled",
        "maps with channels last are averaged over channels",
    ),
    Mistake(
        "analysis/checking/certificates.py",
        "values[relation] = max(values[relation], value)",
        "values[relation] = value",
        "test_certify.py::test_the_worst_of_several_outputs_counts",
        "exchanges are judged by the last output",
    ),
    Mistake(
        "analysis/counting/paper_formulas.py",
        "h * w * c * (4 * c + sw * h + sh * w)",
        "h * w * c * (4 * c + sh * h + sw * w)",
        "test_complexity.py::test_stripes_are_as_wide_and_high_as_their_formula_says",
        "height and width of stripes exchanged",
    ),
    Mistake(
        "analysis/complexity.py",
        'return cli.AGREED if all(row["agree"]',
        'return cli.AGREED if any(row["agree"]',
        "test_complexity.py::test_a_wrong_formula_or_count_is_exit_code_one",
        "exit code 0 where one row agrees",
    ),
    Mistake(
        "analysis/counting/scaling.py",
        "(2 * n * side + base) // (2 * base)",
        "n * side // base",
        "test_scaling.py::test_a_size_that_grows_rounds_halves_up",
        "sizes that grow with the image round down",
    ),
    Mistake(
        "analysis/counting/scaling.py",
        'unpadded = [row for row in rows if not row["padding_%"]]',
        'unpadded = [row for row in rows if row["padding_%"] < 50]',
        "test_sweep.py::test_sizes_that_do_not_divide_are_left_out_or_named",
        "padded points in the exponents",
    ),
    Mistake(
        "analysis/counting/crossings.py",
        "first = max((i for",
        "first = min((i for",
        "test_crossings.py",
        "the first of several crossings",
    ),
    Mistake(
        "analysis/pictures/draw_curves.py",
        'low["macs_formula"] ** (1 - share) * high["macs_formula"] ** share',
        'low["macs_formula"] ** share * high["macs_formula"] ** (1 - share)',
        "test_scaling.py::test_between_two_points_the_curve_is_straight_in_log_log",
        "the ring of a crossing beside the lines",
    ),
    Mistake(
        "analysis/models/footprint.py",
        "        seen[query] = True\n        if cpe:",
        "        if cpe:",
        "test_regions.py::test_a_block_reads_its_own_token",
        "a region without the residual",
    ),
    Mistake(
        "analysis/models/footprint.py",
        "stride * i - axis.padding for",
        "stride * i for",
        "test_regions.py::test_what_a_convolution_reads_is_what_its_gradient_reaches",
        "a convolution's window without its padding",
    ),
    Mistake(
        "analysis/models/reach.py",
        "done += step.block is not None",
        "done += 1",
        "test_regions.py::test_reach_is_the_footprint_of_every_token",
        "downsampling counted as a block",
    ),
    Mistake(
        "analysis/models/maps.py",
        "torch.tensor([1, 2], dtype=torch.int32)",
        "torch.tensor([2, 1], dtype=torch.int32)",
        "test_regions.py::test_masks_are_the_definition_cell_for_cell",
        "top and left exchanged",
    ),
    Mistake(
        "analysis/models/maps.py",
        "(ids == 1 + query[0] * w + query[1])",
        "(ids == 1 + query[0] * h + query[1])",
        "test_regions.py::test_attention_put_back_is_the_dense_softmax",
        "a token's number by the height of the map",
    ),
    Mistake(
        "analysis/models/influence.py",
        "return torch.randn(like.shape, generator=generator)",
        "return torch.randn(like.shape)",
        "test_regions.py::test_parameters_are_drawn_from_their_own_seed",
        "the seed of drawn parameters ignored",
    ),
    Mistake(
        "analysis/pictures/views.py",
        "(int((ordered < share * ordered[-1]).sum()) + 1) / ordered.numel()",
        "int((ordered < share * ordered[-1]).sum()) / ordered.numel()",
        "test_regions.py::test_area_ratios",
        "areas one pixel too small",
    ),
    Mistake(
        "analysis/pictures/studies.py",
        "(seen > 0) & (seen <= n)",
        "(seen > 0) & (seen < n)",
        "test_regions.py::test_shares_are_of_what_is_seen_by_then",
        "shares without the last block",
    ),
    Mistake(
        "analysis/results/statistics.py",
        "return ordered[k - 1], ordered[n - k], max(",
        "return ordered[k - 1], ordered[n - k - 1], max(",
        "test_verdict.py::test_the_interval_covers_the_median",
        "the upper end of an interval one value too low",
    ),
    Mistake(
        "analysis/results/statistics.py",
        "math.ceil(0.95 * len(pooled)) - 1)",
        "math.ceil(0.95 * len(pooled)) - 2)",
        "test_verdict.py::test_the_95th_percentile_is_the_least_value_that_so_many_do_not_exceed",
        "the 95th percentile one value too low",
    ),
    Mistake(
        "analysis/results/statistics.py",
        "2 * pooled.index(v) + pooled.count(v) + 1",
        "2 * pooled.index(v) + 2",
        "test_verdict.py::test_p_is_exact_also_with_ties",
        "ties share the lowest rank",
    ),
    Mistake(
        "analysis/results/summary.py",
        'or str(row.get("key")) in seen:',
        "or False:",
        "test_results.py::test_one_key_counts_once_and_machines_stay_apart",
        "a row that was stored twice counts twice",
    ),
    Mistake(
        "analysis/results/summary.py",
        "key=lambda line: line.summary.median / line.batch,",
        "key=lambda line: line.summary.median,",
        "test_results.py::test_the_best_is_by_image",
        "the best by the time of a batch of any size",
    ),
    Mistake(
        "analysis/results/reporting.py",
        '"p95": 1e3 * s.p95, "img/s": line.batch / s.median,',
        '"p95": 1e3 * s.p95, "img/s": 1 / s.median,',
        "test_results.py::test_the_batch_that_was_used_is_shown",
        "batches a second for images a second",
    ),
    Mistake(
        "analysis/results/latency.py",
        '"latency_iqr": 1e3 * s.iqr,',
        '"latency_iqr": 1e6 * s.iqr,',
        "test_results.py::test_measured_columns_are_in_their_units",
        "microseconds under a heading of milliseconds",
    ),
    Mistake(
        "analysis/results/store.py",
        '_write(file, b"\\n" + lines if torn else lines)',
        "_write(file, lines)",
        "test_store.py::test_after_a_torn_tail_lines_do_not_merge",
        "a row joined to a torn line",
    ),
    Mistake(
        "analysis/results/session.py",
        "return [row for key, row in stored_by_key.items() if key in wanted] + rows",
        "return [*stored_by_key.values(), *rows]",
        "test_speed.py::test_resuming_takes_the_rows_that_are_asked_for",
        "rows of other settings taken when resuming",
    ),
    Mistake(
        "analysis/results/session.py",
        '"settings": settings if task == "time" else {},',
        '"settings": {},',
        "test_speed.py::test_other_settings_and_other_code_are_measured_anew",
        "rows of other settings stand for these",
    ),
    Mistake(
        "analysis/results/measurement.py",
        "json.dumps(content, sort_keys=True,",
        "json.dumps(content, sort_keys=False,",
        "test_store.py::test_equal_content_has_one_key_in_any_process",
        "a key that depends on the order",
    ),
    Mistake(
        "analysis/results/environment.py",
        'TRANSIENT = ("mhz_now", "load", "commit", "commit_dirty")',
        'TRANSIENT = ("mhz_now", "load", "commit", "commit_dirty", "code")',
        "test_speed.py::test_other_settings_and_other_code_are_measured_anew",
        "rows of other code stand for this",
    ),
    Mistake(
        "analysis/timing/clock.py",
        "timed(runner, runner.fresh(next(seeds)), clock)[0]",
        "timed(runner, runner.fresh(0), clock)[0]",
        "test_measure.py::test_no_input_is_timed_twice",
        "the warm-up on one input",
    ),
    Mistake(
        "analysis/timing/clock.py",
        "max(medians) <= (1 + TOLERANCE) * min(medians)",
        "medians[-1] <= (1 + TOLERANCE) * medians[0]",
        "test_measure.py::test_what_does_not_settle_is_called_unstable",
        "a warm-up that may swing in between",
    ),
    Mistake(
        "analysis/timing/build_model.py",
        "if batch == 1 or not out_of_memory(error):",
        "if batch == 1:",
        "test_measure.py::test_other_errors_do_not_change_the_batch",
        "any error taken for one of memory",
    ),
    Mistake(
        "analysis/timing/steps.py",
        "if found.shape != wanted.shape or not found.isfinite().all():",
        "if found.shape != wanted.shape:",
        "test_measure.py::test_a_difference_is_relative_and_no_number_is_infinitely_wrong",
        "NaN for a difference",
    ),
    Mistake(
        "analysis/measure.py",
        '"status": "invalid" if reason else "ok"',
        '"status": "ok"',
        "test_measure.py::test_a_backend_that_is_wrong_is_exposed",
        "wrong answers are ok",
    ),
    Mistake(
        "analysis/timing/memory.py",
        "[field].split()[0]) * 1024",
        "[field].split()[0]) * 1000",
        "test_measure.py::test_kilobytes_of_the_system_are_1024",
        "kilobytes of 1000",
    ),
    Mistake(
        "analysis/models/counterparts.py",
        'for name in ("drop_prob", "p", "drop_path_rate"):',
        'for name in ("p", "drop_path_rate"):',
        "test_measure.py::test_a_peer_drops_nothing_in_training",
        "a peer that drops paths while it is timed",
    ),
    Mistake(
        "analysis/papers/published.py",
        'in1k_only = [r for r in candidates if r["pretrain"] == "ImageNet-1K"]',
        'in1k_only = [r for r in candidates if r["pretrain"]]',
        "test_published.py::test_best",
        "more data taken for a better backbone",
    ),
    Mistake(
        "analysis/papers/ledger.py",
        'ROUNDS: ROUND_HALF_UP,',
        'ROUNDS: ROUND_CEILING,',
        "test_audit.py::test_judge",
        "claims that are rounded up in our favour",
    ),
    Mistake(
        "analysis/audit.py",
        "return cli.DIFFER if changed else cli.AGREED",
        "return cli.AGREED",
        "test_audit.py::test_check_names_a_changed_count",
        "exit code 0 where a count has changed",
    ),
    Mistake(
        "analysis/papers/dense_heads.py",
        'Layer(part, "classes", 1, FC, CLASSES + 1, BOXES)',
        'Layer(part, "classes", 1, FC, CLASSES, BOXES)',
        "test_audit.py::test_heads_against_torch",
        "no class for the background",
    ),
    Mistake(
        "analysis/compare.py",
        'return sorted(known, key=key, reverse=text.startswith("-")) + rest',
        'return sorted(known, key=key, reverse=text.startswith("-"))',
        "test_compare.py::test_rows_are_sorted_and_the_missing_stay_last",
        "rows without a value lost when sorting",
    ),
    Mistake(
        "analysis/compare.py",
        'or (task == "imagenet" and img_size != factory.img_size)',
        "or False",
        "test_compare.py::test_published_numbers_are_those_of_the_file",
        "accuracies of another image size",
    ),
    Mistake(
        "analysis/portable.py",
        'return row["compile"] != "differs" and all(',
        "return all(",
        "test_portable.py::test_exit_code_of_a_difference",
        "exit code 0 where compiled code differs",
    ),
    Mistake(
        "analysis/timing/pieces.py",
        "            stack.callback(_setter(owner, name, getattr(owner, name)))\n",
        "",
        "test_measure.py::test_a_piece_that_is_switched_off_is_gone_and_comes_back",
        "a piece that stays off",
    ),
    # -- training --------------------------------------------------------------------------------
    Mistake(
        "training/data/batches.py",
        'stream(seed, "order", epoch)',
        'stream(seed, "order", 0)',
        "test_training_data.py::test_golden_order",
        "every epoch in one order",
    ),
    Mistake(
        "training/loop/augment.py",
        "partners = self.batch - 1 - places",
        "partners = places",
        "test_training.py::test_an_image_is_mixed_with_the_mirrored_place",
        "an image mixed with itself",
    ),
    Mistake(
        "training/loop/augment.py",
        'with seeded(self.seed, "augment", step, place):',
        'with seeded(self.seed, "augment", step):',
        "test_training.py::test_pictures_of_a_batch_have_draws_of_their_own",
        "one draw for all pictures of a batch",
    ),
    Mistake(
        "training/loop/drop_path.py",
        "module.draws = uniform[:, first : first + count]",
        "module.draws = uniform[:, :count]",
        "test_training.py::test_stochastic_depth_is_the_global_batchs",
        "every part of a batch drops as the first",
    ),
    Mistake(
        "training/loop/drop_path.py",
        "        module.calls = 0\n",
        "",
        "test_training.py::test_stochastic_depth_is_the_global_batchs",
        "an odd number of calls shifts the next step's draws",
    ),
    Mistake(
        "training/settings/budget.py",
        "BACKWARD = 3",
        "BACKWARD = 2",
        "test_training.py::test_a_budget_of_macs_gives_the_cheaper_backbone_more_steps",
        "a training step of two forwards",
    ),
    Mistake(
        "training/settings/recipe.py",
        "(1 - self.min_lr) * (1 + math.cos(",
        "(1 + self.min_lr) * (1 + math.cos(",
        "test_training.py::test_the_schedule_is_timms",
        "a schedule above its largest rate",
    ),
    Mistake(
        "training/loop/initial.py",
        'stream(seed, "init", f"{place}.{name}", *parameter.shape)',
        'stream(seed, "init", name, *parameter.shape)',
        "test_training.py::test_layers_of_one_shape_start_different",
        "all layers of one shape start equal",
    ),
    Mistake(
        "training/loop/learner.py",
        "share = self.world.size / self.config.batch",
        "share = 1 / self.config.batch",
        "test_training_compare.py::test_two_processes_make_the_run_of_one",
        "the gradient of one process's share",
    ),
    Mistake(
        "training/loop/learner.py",
        "torch.arange(len(which))[self.world.rank :: self.world.size]",
        "torch.arange(len(which))[:: self.world.size]",
        "test_training_compare.py::test_two_processes_make_the_run_of_one",
        "every process evaluates the same images",
    ),
    Mistake(
        "training/loop/learner.py",
        "        backbone.train(training)\n",
        "",
        "test_training_simmim.py::test_evaluations_change_nothing",
        "an evaluation leaves the encoder as it is for answers",
    ),
    Mistake(
        "training/objectives/simmim.py",
        'stream(seed, "mask", step)',
        'stream(seed, "mask")',
        "test_training_simmim.py::test_every_image_has_its_own_cells_and_as_many",
        "the same cells hidden in every step",
    ),
    Mistake(
        "training/objectives/simmim.py",
        "[first : first + len(images)]",
        "[: len(images)]",
        "test_training_simmim.py::test_a_batch_in_parts_has_the_loss_of_the_whole",
        "every part of a batch hides what the first hides",
    ),
    Mistake(
        "training/objectives/simmim.py",
        "(predicted - images).abs() * pixels)",
        "(predicted - images).abs())",
        "test_training_simmim.py::test_prediction_and_loss_are_the_papers",
        "the loss counts seen pixels",
    ),
    Mistake(
        "training/objectives/simmim.py",
        "encoder.stem.norm.register_forward_hook",
        "encoder.stem.register_forward_hook",
        "test_training_simmim.py::test_prediction_and_loss_are_the_papers",
        "hidden after the positions are added",
    ),
    Mistake(
        "training/objectives/probe.py",
        "DECAY * weight",
        "0.1 * weight",
        "test_training_simmim.py::test_the_probe_is_logistic_regression",
        "a probe that is held too close to zero",
    ),
    Mistake(
        "training/loop/run.py",
        'self.curve, self.losses = saved.state["curve"], saved.state["losses"]',
        'self.curve = saved.state["curve"]',
        "test_training.py::test_losses_since_the_last_evaluation_survive_a_stop",
        "losses since the last evaluation forgotten",
    ),
    Mistake(
        "training/loop/checkpoint.py",
        "KEPT = 2",
        "KEPT = 1",
        "test_training.py::test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over",
        "one checkpoint kept",
    ),
    Mistake(
        "training/settings/identity.py",
        'for option in ("weights", "workers", "keep_weights"):',
        'for option in ("weights", "workers", "keep_weights", "threads"):',
        "test_training.py::test_what_changed_between_two_parts_is_named",
        "threads may change",
    ),
    Mistake(
        "training/plan.py",
        "name: max(self.rates, key=",
        "name: min(self.rates, key=",
        "test_training_compare.py::test_the_best_rate_is_chosen_on_images_that_are_not_judged",
        "the worst rate is taken",
    ),
    Mistake(
        "training/worker.py",
        'mine = not any(row.get("slot") == config.slot for row in store.read()[0])',
        "mine = True",
        "test_training_compare.py::test_a_run_belongs_to_the_worker_that_holds_its_lock",
        "a run that has a row is made again",
    ),
    Mistake(
        "training/report.py",
        'if row.get("kind") == "plan" for',
        'if row.get("kind") == "plans" for',
        "test_training_compare.py::test_the_table_is_in_the_order_of_its_plan",
        "the order of whichever run ended first",
    ),
    Mistake(
        "attention/softmax/position.py",
        "        if free and not known(image.shape[0] > 1):",
        "        if free:",
        "test_compile.py::test_mixers_export",
        "LePE copies where no graph asks",
    ),
    Mistake(
        "backbones/timm_models.py",
        '"pool_size": spec.pooled_grid(spec.img_size)',
        '"pool_size": spec.grids(spec.img_size)[0]',
        "test_timm_models.py::test_default_configs",
        "the pool of the first stage",
    ),
    Mistake(
        "transom/errors.py",
        "text = text if len(text) <= 900 else",
        "text = text if len(text) <= 80 else",
        "test_outputs.py::test_a_path_in_an_error_is_whole",
        "a path cut in its middle",
    ),
    Mistake(
        "attention/softmax/branch.py",
        "as_keys, as_queries = bias.to(q.dtype)",
        "as_queries, as_keys = bias.to(q.dtype)",
        "test_tokens.py::test_values[messenger]",
        "the biases of a messenger as key and as query exchanged",
    ),
    Mistake(
        "attention/softmax/branch.py",
        "torch.where(beside[:, None], as_queries, as_keys * beside)",
        "torch.where(beside[:, None], as_queries * ~beside, as_keys * beside)",
        "test_tokens.py::test_values[messenger]",
        "no bias of a messenger that attends to itself",
    ),
    Mistake(
        "attention/softmax/branch.py",
        "bias.to(q.dtype)[..., None, None]",
        "bias.detach().to(q.dtype)[..., None, None]",
        "test_tokens.py::test_gradients[messenger]",
        "the bias of messengers never learns",
    ),
    Mistake(
        "attention/softmax/branch.py",
        "mask = F.pad(mask, (tokens, 0, tokens, 0))",
        "mask = F.pad(mask, (0, tokens, 0, tokens))",
        "test_tokens.py::test_values[full]",
        "positions of the map at the tokens beside it",
    ),
    Mistake(
        "attention/softmax/branch.py",
        "2 * groups.tokens * tokens + groups.n * tokens * tokens",
        "2 * groups.tokens * tokens",
        "test_tokens.py::test_cost_is_what_runs[messenger]",
        "pairs of two tokens beside the map not counted",
    ),
    Mistake(
        "attention/softmax/layers.py",
        "self.branch.cost(groups, tokens // groups.n)",
        "self.branch.cost(groups, tokens)",
        "test_tokens.py::test_cost_is_what_runs[messenger]",
        "every window counted with all messengers",
    ),
    Mistake(
        "attention/mixers/sra.py",
        "(torch.cat(pair, dim=1) for pair in zip(own, (q, k, v), strict=True))",
        "(torch.cat((own[0], q), dim=1), k, v)",
        "test_tokens.py::test_values[sra]",
        "tokens beside the map are no keys",
    ),
    Mistake(
        "attention/mixers/messenger.py",
        "x.unflatten(3, (r, r, -1))",
        "x.unflatten(3, (-1, r, r)).movedim(3, 5)",
        "test_tokens.py::test_exchange",
        "every so many channels exchanged instead of parts",
    ),
    Mistake(
        "attention/mixers/messenger.py",
        "narrow(narrow(x, 1, 0, nh), 2, 0, nw)",
        "x[:, -nh:, -nw:]",
        "test_tokens.py::test_exchange",
        "messengers outside the map taken for those on it",
    ),
    Mistake(
        "attention/mixers/token_mlp.py",
        "F.gelu(mixed)",
        "F.relu(mixed)",
        "test_attention_definition.py::test_values[token_mlp]",
        "another nonlinearity between two matrices over tokens",
    ),
    Mistake(
        "attention/mixers/token_mlp.py",
        "width = 2 * self.config.hidden * self.dim",
        "width = self.config.hidden * self.dim",
        "test_attention_definition.py::test_cost[token_mlp]",
        "one of two matrices over tokens counted",
    ),
    Mistake(
        "backbones/model/block.py",
        "tokens = self.mixer.exchange(tokens, *size)",
        "pass",
        "test_tokens.py::test_backbones[msg]",
        "messengers exchange nothing",
    ),
    Mistake(
        "backbones/model/block.py",
        "                return join(*self.mixer(*part(both, size, t)))",
        "                y, own = self.mixer(*part(both, size, t))\n"
        "                return join(y, self.mixer.exchange(own, *size))",
        "test_tokens.py::test_backbones[msg]",
        "messengers exchange before the residual, too",
    ),
    Mistake(
        "backbones/model/block.py",
        "return part(self._transform(join(self._between(x), tokens)), size, t)",
        "return self._transform(self._between(x)), tokens",
        "test_tokens.py::test_tokens_skip_the_mixers_that_take_none",
        "tokens beside the map skip the MLP",
    ),
    Mistake(
        "backbones/model/block.py",
        "self.mlp.cost(h, w) + self.mlp.cost(1, tokens)",
        "self.mlp.cost(h, w)",
        "test_tokens.py::test_cost_of_backbones[msg]",
        "the MLP of tokens beside the map not counted",
    ),
    Mistake(
        "backbones/model/stage.py",
        "return tuple(map(self.norm, maps))",
        "return (self.norm(maps[0]), *maps[1:])",
        "test_tokens.py::test_backbones",
        "tokens beside the map skip the norm of their stage",
    ),
    Mistake(
        "backbones/parts/tokens.py",
        "tokens = self.tokens if self.position is None else self.tokens + self.position",
        "tokens = self.tokens",
        "test_tokens.py::test_vit",
        "the position of the class token not added",
    ),
    Mistake(
        "backbones/parts/tokens.py",
        "return tokens[:, None, :1]",
        "return tokens[:, None, -1:]",
        "test_tokens.py::test_vit",
        "the last register read instead of the class token",
    ),
    Mistake(
        "backbones/parts/tokens.py",
        "torch.arange(n, device=x.device) % region for n in sides",
        "torch.arange(n, device=x.device) * region // n for n in sides",
        "test_tokens.py::test_backbones[msg]",
        "learned messengers stretched over the map instead of tiled",
    ),
]


def copy_of_tree(folder: Path) -> Path:
    """The files that git knows or would take, as they lie in the working tree, in a new folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *COPIED],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if not name.startswith("benchmarks/results/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def tested(folder: Path, selection: list[str]) -> subprocess.CompletedProcess[str]:
    """pytest over the copy in `folder`, without anything that it leaves behind."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *selection],
        cwd=folder, env=env, capture_output=True, text=True,
    )  # fmt: skip


def planted(folder: Path, mistake: Mistake) -> subprocess.CompletedProcess[str]:
    """The mistake's tests on the copy in `folder` with the mistake, which is taken out again."""
    file = folder / mistake.file
    right = file.read_text(encoding="utf-8")
    assert right.count(mistake.text) == 1, f"{mistake.title}: its text stands not once"
    try:
        file.write_text(right.replace(mistake.text, mistake.wrong), encoding="utf-8")
        return tested(folder, mistake.selection)
    finally:
        file.write_text(right, encoding="utf-8")


def main(words: list[str]) -> int:
    """Two at a time, each in a copy of its own; exit code 1 where one is not seen."""
    chosen = [m for m in MISTAKES if all(word in m.title for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copies = [copy_of_tree(Path(folder) / str(i)) for i in range(2)]

        def run(mistake: Mistake) -> str:
            copy, start = copies.pop(), time.monotonic()
            done = planted(copy, mistake)
            copies.append(copy)
            word = {0: "UNSEEN", SEEN: "seen"}.get(done.returncode, f"ended with {done.returncode}")
            print(f"{word:8}{time.monotonic() - start:6.1f} s  {mistake.title}", flush=True)
            return word

        with ThreadPoolExecutor(len(copies)) as pool:
            found = list(pool.map(run, chosen))
    print(f"{found.count('seen')} of {len(found)} seen")
    return int(found.count("seen") != len(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
