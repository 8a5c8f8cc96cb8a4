"""Faults of meaning that the tests must notice: what :mod:`mutations` plants.

A row is a file below ``src/lookfar``, a text that stands in it exactly once, what replaces it, the tests that should
fail, and what would be wrong. A test of the suite holds the table to the code, so that it does not rot.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    file: str
    before: str
    after: str
    tests: str
    why: str
    survives: str = ""  # why no test notices, where none should


ATTENTION = "tests/ops/test_attention.py"
MEMORIES = "tests/ops/test_memories.py"
CROSS = "tests/ops/test_criss_cross.py"
SPARSE = "tests/ops/test_sparse_attention.py"
WINDOWS = "tests/ops/test_neighborhood.py"
FILTERS = "tests/ops/test_filters.py"
LOW_RANK = "tests/blocks/test_low_rank.py"
BATCHES = "tests/data/test_batches.py"
SCENES = "tests/data/test_scenes.py"
FOLDER = "tests/data/test_folder.py"
LOOP = "tests/training/test_loop.py"
RESUME = "tests/training/test_resume.py"
METRICS = "tests/training/test_metrics.py"
DEVICES = "tests/training/test_devices.py"
HOSTS = "tests/networks/test_segmentation.py"
MAPS = "tests/diagnostics/test_maps.py"
SAMPLES = "tests/diagnostics/test_samples.py"
WEIGHTS = "tests/weights/test_names.py"
STATISTICS = "tests/study/test_statistics.py"
GOLDENS = "tests/test_goldens.py"
UNCHANGED = "tests/insertion/test_unchanged.py"
START = "tests/insertion/test_start.py"
RESULTS = "tests/study/test_results.py"
STATISTICS = (
    "tests/study/test_statistics.py --deselect=tests/study/test_statistics.py::"
    "test_intervals_and_verdicts_are_right_as_often_as_they_say"  # takes a minute
)
SPARSE_BLOCKS = "tests/blocks/test_sparse_attention.py"
WORKER = "tests/study/test_worker.py"
PLAN = "tests/study/test_plan.py"

MUTANTS = [
    # ---- data ----
    Mutant("data/_base.py", "derive_seed(seed, position, 1)", "derive_seed(seed, 1)", BATCHES,
           "the same augmentation at all positions"),
    Mutant("data/_base.py", "derive_seed(seed, epoch)", "derive_seed(seed)", BATCHES,
           "the same order in every epoch"),
    Mutant("data/_base.py", "derive_seed(seed, epoch)", "derive_seed(epoch)", BATCHES,
           "the same order under every seed"),
    Mutant("data/_base.py", "step * batch_size + rank * share", "(step + rank) * share", BATCHES,
           "shares of a batch overlap those of the next step"),
    Mutant("data/_base.py", "self._ahead.pop(wanted, None)", "self._ahead.pop(next(iter(self._ahead), None), None)",
           BATCHES, "the batch that was prepared is given, whichever was asked for"),
    Mutant("data/_base.py", '{**self.__dict__, "_ahead": {}}', "self.__dict__", BATCHES,
           "data in use cannot go to another process"),
    Mutant("data/_base.py", "min(start + batch_size, len(judged))", "min(start + batch_size, len(judged) - 1)",
           BATCHES, "the last validation image is never judged"),
    Mutant("data/_base.py", "scale = 1.0 / 255.0 if", "scale = 1.0 / 256.0 if", BATCHES,
           "bytes and floats are normalised differently"),
    Mutant("data/scenes.py", "rank % 5 != 4\n", "rank >= 0\n", SCENES, "digits of validation are in training"),
    Mutant("data/scenes.py", "torch.cat([colour, colour], 1)", "torch.cat([colour, colour.flip(1)], 1)", SCENES,
           "a square has the parity of another colour's digit"),
    Mutant("data/scenes.py", "torch.randint(1, 10, (count, 4)", "torch.randint(0, 10, (count, 4)", SCENES,
           "a digit labelled as different may be of the same class"),
    Mutant("data/scenes.py", "permute(0, 3, 1, 4, 2, 5)", "permute(0, 3, 1, 5, 2, 4)", SCENES,
           "digits lie on their side"),
    Mutant("data/transforms.py", "interpolation=EXACT)[0]\n\n\n@dataclass", ")[0]\n\n\n@dataclass", BATCHES,
           "labels are interpolated when a mask is resized"),
    Mutant("data/_matching.py", 'r"(?![a-zA-Z0-9])"', '""', FOLDER, "sequence ab is held out with sequence a"),
    Mutant("data/_files.py", '_statistics(samples["train"])', '_statistics(samples["val"])', FOLDER,
           "mean and deviation are those of validation"),
    Mutant("data/_judging.py", 'largest = max(sets["train"], key', "largest = max(found, key", FOLDER,
           "the brightest validation image sets the scale of training"),
    Mutant("data/_judging.py", "if label not in counts]", "if label + 1 not in counts]", FOLDER,
           "the wrong class is said to be absent"),
    Mutant("data/scan.py", "if stamp and stamp == then:", "if then:", FOLDER,
           "a file that has changed is not looked at again"),
    Mutant("data/scan.py", "if not result.error:", "if True:", FOLDER, "an error is remembered after its cure"),
    Mutant("data/labels.py", "{key: IGNORE if key in ignored else wanted.mapping.get(key, key) for key in tally}",
           "{key: wanted.mapping.get(key, key) for key in tally}", FOLDER, "ignored values stay labels"),
    Mutant("data/labels.py", "np.where(keys[at] == values, labels[at], np.uint8(IGNORE))", "labels[at]",
           "tests/data/test_labels.py", "an unknown colour has the label of the next one"),
    # ---- training ----
    Mutant("training/optimization.py", "derive_seed(seed, step, rank)", "derive_seed(seed, 0, rank)", LOOP,
           "the same random state at every step"),
    Mutant("training/optimization.py", "derive_seed(seed, step, rank)", "derive_seed(seed, step)", LOOP,
           "all processes drop the same units"),
    Mutant("training/optimization.py", "parameter.ndim > 1 and parameter.numel() > 1", "True", LOOP,
           "norms and biases decay"),
    Mutant("training/optimization.py", ' and not inserted', "", LOOP,
           "a block in the backbone has the backbone's learning rate"),
    Mutant("training/optimization.py", "(step + 1) / up)", "step / up)", LOOP, "the schedule is one step late"),
    Mutant("training/loop.py", "labelled.sum() if weights is None else",
           "masks.new_tensor(masks.numel()) if weights is None else", LOOP,
           "void pixels are counted in the mean loss"),
    Mutant("training/loop.py", "weights[masks[labelled]].sum()", "labelled.sum()", LOOP,
           "the loss is not divided by the weights of its classes"),
    Mutant("training/loop.py", "total / self._mean_over_ranks(count.float())", "total / count.float()",
           f"{DEVICES}::test_two_processes_equal_one",
           "devices with few labels weigh as much as those with many"),
    Mutant("training/loop.py", "max_norm=settings.clip", "max_norm=2 * settings.clip", LOOP,
           "the gradient is clipped at another norm"),
    Mutant("training/loop.py", "network = self.network if self.ema is None else self.ema.module",
           "network = self.network", LOOP, "the last weights are judged, not the average"),
    Mutant("training/loop.py", 'self.optimizer.load_state_dict(checkpoint.optimizer["optimizer"])', "pass", RESUME,
           "the optimiser forgets its moments"),
    Mutant("training/loop.py", "self.ema.module.load_state_dict(checkpoint.ema)", "pass", RESUME,
           "the average forgets what was before"),
    Mutant("training/loop.py", "self.step, self.seconds = checkpoint.step,",
           "self.step, self.seconds = checkpoint.step + 1,", RESUME, "a run goes on one step too late"),
    Mutant("training/loop.py", 'self.window = [torch.tensor(loss) for loss in checkpoint.state["window"]]', "pass",
           f"{RESUME}::test_losses_between_records_survive", "a record forgets the losses before the checkpoint"),
    Mutant("training/loop.py", "images = images.contiguous(memory_format=torch.channels_last)", "pass", LOOP,
           "images are not channels_last"),
    Mutant("training/loop.py", "parameter.data.contiguous(memory_format=torch.channels_last)", "parameter.data", LOOP,
           "weights are not channels_last"),
    Mutant("training/loop.py", "F.cross_entropy(self.network(images), masks, weights,",
           "F.cross_entropy(self.network(images), masks, None,", LOOP, "class weights are not used"),
    Mutant("training/checkpoints.py", 'entry["step"] <= upto', "True", RESUME,
           "steps that are done again are recorded twice"),
    Mutant("training/checkpoints.py", "weights_only=True", "weights_only=False",
           f"{RESUME}::test_a_checkpoint_runs_no_code", "a checkpoint may run code"),
    Mutant("training/checkpoints.py", "[:-keep]", "[keep:]", RESUME, "the newest checkpoints are removed"),
    Mutant("training/checkpoints.py", 'if (entry[1] / "state.json").exists()', "",
           f"{RESUME}::test_killed_while_writing", "half a checkpoint is believed"),
    Mutant("training/environment.py", "back.callback(np.random.set_state, np.random.get_state())", "pass", LOOP,
           "numpy's random state is not given back"),
    Mutant("training/environment.py", "came.append(number)", "raise KeyboardInterrupt",
           f"{RESUME}::test_a_polite_signal_costs_no_step",
           "a signal ends a run in the middle of a step"),
    Mutant("training/metrics.py", "(image[valid] * K + t) * K + p", "(image[valid] * K + p) * K + t", METRICS,
           "truth stands in columns"),
    Mutant("training/metrics.py", "float(np.mean(present)) if", "float(np.sum(present) / len(iou)) if", METRICS,
           "a class that never occurs counts as missed"),
    Mutant("training/metrics.py", "total.sum(0) + truth - hit", "total.sum(0) + truth", METRICS,
           "hits are counted twice in a union"),
    Mutant("training/metrics.py", "valid = truth != IGNORE", "valid = truth >= 0", METRICS, "void pixels are judged"),
    Mutant("training/metrics.py", "network.eval()\n    try", "network.train()\n    try", METRICS,
           "a network is judged in training mode"),
    Mutant("training/metrics.py", "module.training = training", "module.training = True", METRICS,
           "frozen norms thaw after a validation"),
    Mutant("training/probes.py", "values.abs().mean()", "values.mean()", LOOP, "gammas of both signs cancel"),
    Mutant("training/probes.py", "(y - x).norm() / size", "y.norm() / size", LOOP,
           "a block's contribution holds its input"),
    # ---- networks, weights, diagnostics ----
    Mutant("networks/control.py", "nn.init.zeros_(self.norm.weight)", "pass", HOSTS,
           "the control does not start as the identity"),
    Mutant("networks/control.py", "key=lambda w: abs(count(w) - parameters)",
           "key=lambda w: -abs(count(w) - parameters)", HOSTS, "the control's size is the farther of two"),
    Mutant("networks/segmentation.py", "[..., : size[0], : size[1]]", "[..., -size[0] :, -size[1] :]", HOSTS,
           "an odd image is shifted against its labels"),
    Mutant("networks/segmentation.py", "align_corners=False", "align_corners=True", HOSTS,
           "logits are stretched to the corners"),
    Mutant("weights/names.py", "value.abs() + eps", "value + eps", WEIGHTS, "InPlaceABN's negative weights stay"),
    Mutant("diagnostics/maps.py", "total.square().sum(-1) - n", "total.square().sum(-1)", MAPS,
           "each query is compared with itself"),
    Mutant("diagnostics/maps.py", "rows = maps.double() * valid[:, None, None]", "rows = maps.double()", MAPS,
           "weight on void counts as weight on another class"),
    Mutant("diagnostics/maps.py", " / valid.double().mean(-1)[:, None]", "", MAPS, "chance counts void keys"),
    Mutant("diagnostics/maps.py", "device=labels.device) + 0.5)", "device=labels.device))", MAPS,
           "labels are those of corners, not of centres"),
    Mutant("diagnostics/samples.py", "(2 * i + 1) * count // (2 * wanted)", "i * count // wanted",
           SAMPLES, "images are chosen from the beginning"),
    Mutant("diagnostics/samples.py", "module.training = training", "pass", SAMPLES, "a network stays in eval"),
    # ---- ops ----
    Mutant("ops/embedded_gaussian.py", "y = F.scaled_dot_product_attention(q, k, v, scale=scale)",
           "y = F.scaled_dot_product_attention(q, k, v)", ATTENTION, "fused attention has torch's scale, not its own"),
    Mutant("ops/concatenation.py", "return (y / M).to(dtype)", "return y.to(dtype)", ATTENTION,
           "a sum over the keys in place of their mean"),
    Mutant("ops/concatenation.py", "a, b = a + offset, b - offset", "a, b = a, b - offset", ATTENTION,
           "the keys' offset is taken off and not given back"),
    Mutant("ops/disentangled.py", "return embedded_gaussian(centred(q), k, v, scale=scale)",
           "return embedded_gaussian(q, k, v, scale=scale)", ATTENTION, "pairwise attention keeps the queries' mean"),
    Mutant("ops/dot_product.py", "return q @ (scale / max(k.shape[-2], 1)", "return q @ (scale / max(q.shape[-2], 1)",
           ATTENTION, "divided by the number of queries, not of keys"),
    Mutant("ops/attention.py", "torch.cat([k, -popularity], -1)", "torch.cat([k, popularity], -1)", ATTENTION,
           "double normalisation rewards popular keys"),
    Mutant("ops/double_normalization.py", "math.log(EPS)", "math.log(EPS) - 100", MEMORIES,
           "a position that every slot rejects is not rejected"),
    Mutant("ops/external_attention.py", '"softmax": lambda l: l.softmax(-2)', '"softmax": lambda l: l.softmax(-1)',
           MEMORIES, "softmax over the positions in place of the slots"),
    Mutant("ops/channel_attention.py", "(scale * x @ x.transpose(-2, -1)).softmax(-1)",
           "(scale * x @ x.transpose(-2, -1)).softmax(-2)", MEMORIES,
           "channels that give are normalised, not those that take"),
    Mutant("ops/expectation_maximization.py", "z = logits.softmax(-2)", "z = logits.softmax(-1)", MEMORIES,
           "the E step normalises over positions"),
    Mutant("ops/expectation_maximization.py", "m = m + b[:, None] * total", "m = m + b[:, None]", MEMORIES,
           "a bias is given once, not once a position"),
    Mutant("ops/adaptive_average.py", "((i + 1) * size + bins - 1) // bins", "(i + 1) * size // bins", "tests/ops/test_every_op.py -k adaptive",
           "bins that do not divide the map lose their last row"),
    Mutant("ops/matrix_decomposition.py", "shares.sum(1, keepdim=True)", "shares.sum(2, keepdim=True)",
           "tests/test_goldens.py -k hamburger", "concepts are means over the wrong axis"),
    Mutant("ops/criss_cross.py", "column.masked_fill(i[:, None] == i, -torch.inf)", "column", CROSS,
           "the own position counts twice where graphs are captured"),
    Mutant("ops/criss_cross.py", "s.diagonal(dim1=1, dim2=2).fill_(-torch.inf)", "pass", CROSS,
           "the own position counts twice"),
    Mutant("ops/criss_cross.py", ".sub_(_lines(inners, at)[..., None]).mul_(p)", ".mul_(p)", CROSS,
           "the gradient forgets that softmax subtracts"),
    Mutant("ops/_window.py", "start.clamp(max=n - k).clamp(min=0)", "start.clamp(min=0)", WINDOWS,
           "a clamped window leaves the map below and on the right"),
    Mutant("ops/_window.py", "(n - k + k // 2 + 1, n, n - k + cell)", "(n - k + k // 2, n, n - k + cell)", WINDOWS,
           "a window is pushed inward one query too early"),
    Mutant("ops/_window.py", "self.stride[axis], self.dilation[axis]\n        start",
           "self.stride[axis], 1\n        start", WINDOWS, "windows of the definition are not dilated"),
    Mutant("ops/neighborhood.py", "s = s + widened(self.bias)", "pass", WINDOWS, "a bias is not added"),
    Mutant("ops/sparse_attention.py", " & ~far[:, None, None]", "", SPARSE, "a key that is near and far counts twice"),
    Mutant("ops/filters.py", "-(dy * dy + dx * dx) / (2 * sigma_spatial**2)", "-(dy * dy) / (2 * sigma_spatial**2)",
           FILTERS, "nearness counts in rows alone"),
    Mutant("ops/filters.py", "F.pad(f * b, here) + F.pad(f * a, there)", "F.pad(f * a, here) + F.pad(f * b, there)",
           FILTERS, "positions average themselves"),
    Mutant("ops/pointwise_spatial.py", "offsets[y : y + H].flip(0)", "offsets[y : y + H]",
           "tests/ops/test_pointwise_spatial.py", "positions give to those on the other side"),
    Mutant("ops/deformable.py", "rows = moves[:, :, 0] + step[:, None", "rows = moves[:, :, 1] + step[:, None",
           "tests/ops/test_deformable.py", "samples move by the column's offset in rows"),
    # ---- blocks ----
    Mutant("blocks/sparse_attention.py", "self.scale = (inner // switches.heads) ** -0.5", "self.scale = 1.0",
           SPARSE_BLOCKS, "windowed attention has no scale"),
    Mutant("blocks/sparse_attention.py", "self.scale = (inner // switches.heads) ** -0.5", "self.scale = inner**-0.5",
           SPARSE_BLOCKS, "windowed attention's scale ignores its heads"),
    Mutant("blocks/criss_cross.py", "for _ in range(self.recurrence):", "for _ in range(1):",
           "tests/blocks/test_criss_cross.py", "recurrence is not repeated"),
    Mutant("blocks/global_context.py", "self.mul(mixed).sigmoid()", "self.mul(mixed)",
           f"{GOLDENS} -k global_context", "a context multiplies without a sigmoid"),
    Mutant("blocks/global_context.py", "x.flatten(2).mean(-1)[:, None, None]", "x.flatten(2).sum(-1)[:, None, None]",
           f"{GOLDENS} -k global_context", "average pooling sums"),
    Mutant("blocks/dual_attention.py", '(-1.0 if similarity == "least" else 1.0)', "1.0",
           f"{GOLDENS} -k dual_attention", "channels look at those most like them"),
    Mutant("blocks/cbam.py", "gated if self.order", "x if self.order", "tests/blocks/test_gates.py",
           "both gates see the input"),
    Mutant("blocks/squeeze_excitation.py", "widened(flat).mean(-1)", "widened(flat).sum(-1)",
           "tests/blocks/test_gates.py", "channels are squeezed to sums"),
    Mutant("blocks/expectation_maximization.py", "(1 - momentum) * self.bases + momentum * mean",
           "momentum * self.bases + (1 - momentum) * mean", "tests/blocks/test_expectation_maximization.py",
           "bases forget at the rate at which they should keep"),
    Mutant("blocks/non_local.py", "return width**-0.5 if scale else 1.0", "return 1.0",
           "tests/blocks/test_non_local.py", "scale=True does nothing"),
    # ---- insertion ----
    Mutant("insertion/hanging.py", "nn.Parameter(torch.zeros(1,", "nn.Parameter(torch.ones(1,", START,
           "a gate is open at the start"),
    Mutant("insertion/hanging.py", "(self.block(x).to(x.dtype) - x)", "self.block(x).to(x.dtype)", START,
           "a gate adds to its input"),
    Mutant("insertion/hanging.py", "if record is not None and record.off:\n        return output",
           "if False:\n        return output", "tests/insertion/test_managing.py", "a block cannot be switched off"),
    Mutant("insertion/dry_run.py", "module._buffers[name] = buffer.copy_(value)", "pass", UNCHANGED,
           "trying moves batch statistics"),
    Mutant("insertion/dry_run.py", "module.training = training", "module.training = True", UNCHANGED,
           "a frozen part thaws"),
    Mutant("insertion/dry_run.py", "with torch.random.fork_rng(devices=cuda), _other", "with _other", UNCHANGED,
           "trying takes random numbers from the caller"),
    Mutant("insertion/files.py", "for order, step in enumerate(steps, 1):",
           "for order, step in enumerate(steps[::-1], 1):", "tests/insertion/test_files.py",
           "blocks are replayed in the other order"),
    Mutant("insertion/building.py", "x = _random(like, device=like.device)", "x = like", START,
           "whether a block is gated depends on the host's features"),
    Mutant("insertion/inserting.py", "if one.calls != len(slot.calls)", "if one.calls < 1", UNCHANGED,
           "a block that runs twice passes for one that runs once"),
    # ---- study ----
    Mutant("study/statistics.py", "covariance = (covariance - by_candidate @ by_candidate.T) / (S * (S - 1))",
           "covariance = covariance / S**2", STATISTICS, "what samples do to one run counts twice"),
    Mutant("study/statistics.py", "covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]",
           "covariance[0, 0] + covariance[1, 1]", RESULTS, "the draws of a difference are not paired"),
    Mutant("study/statistics.py", "    if groups > 1 and sample_variance > 0:", "    if False:",
           f"{STATISTICS} {RESULTS}", "images make nothing uncertain"),
    Mutant("study/statistics.py", "float(of_seed.var(ddof=1))", "float(of_seed.var())", STATISTICS,
           "the deviation over seeds is divided by S"),
    Mutant("study/statistics.py", "1 if alone else self.compared", "1", STATISTICS,
           "several blocks are several chances to be lucky"),
    Mutant("study/statistics.py", "max(a + b, seed_variance)", "a + b", STATISTICS,
           "a pair that scatters is not believed"),
    Mutant("study/statistics.py", "(2 * pooled + (S - 1) * unbiased) / (S + 1)", "unbiased", STATISTICS,
           "variances are not moderated"),
    Mutant("study/scoring.py", "where=truth > 0", "where=truth + predicted > 0", RESULTS,
           "a class that no mask shows costs its own IoU"),
    Mutant("study/build.py", "torch.manual_seed(_BLOCK_SEED + seed)", "torch.manual_seed(_BLOCK_SEED)", WORKER,
           "blocks are the same under every seed"),
    Mutant("study/build.py", "torch.manual_seed(seed)", "torch.manual_seed(0)", WORKER,
           "hosts are the same under every seed"),
]  # fmt: skip
