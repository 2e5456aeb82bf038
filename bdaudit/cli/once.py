"""Options that are given twice and can count only once."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperOption

__all__ = ["OnceCommand"]


class OnceCommand(TyperCommand):
    """A command that refuses two different values for an option that takes one.

    The parser underneath takes the last one and drops the others without a word.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look for options given twice, then parse."""
        for option, values in self._given(ctx, args):
            if len({str(value) for value in values}) > 1:
                named = " and ".join(repr(value) for value in dict.fromkeys(map(str, values)))
                ctx.fail(f"{'/'.join(option.opts)}: expected one value, got {named}")
        return super().parse_args(ctx, args)

    def _given(self, ctx: Any, args: list[str]) -> list[tuple[TyperOption, list[Any]]]:
        """Return the options that take one value, with all the values that stand there."""
        single = [
            option
            for option in self.get_params(ctx)
            if isinstance(option, TyperOption) and not option.multiple and not option.count
        ]
        for option in single:
            option.multiple = True  # the parser then keeps every value
        try:
            given = self.make_parser(ctx).parse_args(list(args))[0]
        except Exception:
            return []
        finally:
            for option in single:
                option.multiple = False
        return [
            (option, given[option.name])
            for option in single
            if option.name is not None and isinstance(given.get(option.name), list)
        ]
