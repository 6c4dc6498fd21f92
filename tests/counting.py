"""How often a field is really called: by loops of Python, or by a compiled program."""

import jax


def counting(field):
    """The field, and a list that gets the rows of every call; for `executed`."""
    rows = []

    def counted(x, t=None, cond=None):
        rows.append(len(x))
        return field(x, t, cond)

    return counted, rows


def executed(run, *arguments):
    """The result of run(*arguments) without jit: JAX's loops are loops of Python, and so counted.

    A program that calls back is never kept, and would cost each run of the tests its compilation.
    """
    with jax.disable_jit():
        return run(*arguments)


def calling_back(field):
    """As `counting`, from within a program: where there are too many steps for `executed`, or a
    solver whose loops are compiled whatever is asked. `called` waits for the calls."""
    rows = []

    def counted(x, t=None, cond=None):
        jax.debug.callback(lambda: rows.append(len(x)))
        return field(x, t, cond)

    return counted, rows


def called(out):
    """What a program gave, once all that it calls back has been called."""
    jax.block_until_ready(out)
    jax.effects_barrier()
    return out
