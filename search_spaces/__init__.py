"""Search spaces: definitions of what may be pruned, one way of finding it per file.

A search space lists *groups*: channels that must be cut together, with the places where they lie in the
network's tensors and the numbers of them that may stay. It holds nothing of the network itself.

:func:`~autoprune.search_spaces.traced.trace` finds the groups of any network from one forward pass and
proves each of them. :mod:`~autoprune.search_spaces.named` narrows a space by name: patterns, ranges of
rates, multiples, ties.

    space = trace(model, example)
    space = select(space, exclude=["layer4.*"])
    space = round_to(limit(space, {"*": (0.25, 1.0)}), 8)

An own search space is a function ``(model, example) -> SearchSpace``. It may start from the traced one
and rearrange its groups, for instance to cut the inner widths of a ResNet alike within every stage:

    def alike(model, example):
        space = trace(model, example)
        stages = [[f"layer{s}.{block}.conv1" for block in range(2)] for s in (1, 2, 3, 4)]
        return tie(space, stages)

or list its groups by hand, where code knows better than any tracer:

    def first_two(model, example):
        traced = trace(model, example)                       # for the layers that costs count
        cut = (
            Slice("conv1", "weight", 0, "out", np.arange(16)[:, None]),
            Slice("conv1", "bias", 0, "through", np.arange(16)[:, None]),
            Slice("conv2", "weight", 1, "in", np.arange(16)[:, None]),
        )
        groups = (Group("conv1", 16, cut, counts=(8, 12, 16)),)
        return replace(traced, groups=groups)

Row u of ``positions`` lists what vanishes with unit u; a channel that is read at nine places after a
flatten has nine columns there. :func:`~autoprune.search_spaces.proof.prove` tells whether groups made by
hand compute what they should.
"""
