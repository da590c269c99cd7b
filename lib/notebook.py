"""The first steps of every notebook, and its small tables."""

import inspect
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lib.config import Config, notebook_parameters
from lib.runs import Run, named_config, open_run


def start(namespace: Mapping[str, Any]) -> tuple[Config, Run]:
    """Configuration and run folder from a notebook's parameters: `start(globals())`. BadInput: a
    parameter does not work, or another process writes into the run's folder."""
    warnings.filterwarnings("ignore")
    config = named_config(*notebook_parameters(namespace))
    return config, open_run(config)


def show(function: Any) -> Any:
    """The source of a function or class, highlighted."""
    from IPython.display import Markdown

    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    return Markdown(f"```python\n{source}```")


def table(rows: Iterable[Mapping[str, Any] | Sequence[Any]], columns: Sequence[str] = ()) -> Any:
    """Rows as a table that a notebook shows whole, without an index and with its tags visible."""
    import pandas as pd

    pd.set_option("display.max_colwidth", None, "display.max_rows", None)
    # As objects, or a column of whole numbers and fractions would show 12 as 12.000.
    frame = pd.DataFrame(list(rows), columns=list(columns) or None, dtype=object)
    style = frame.style.hide(axis="index")
    if isinstance(frame.columns, pd.RangeIndex):  # rows without names
        style = style.hide(axis="columns")
    # A word breaks only where it is longer than a cell may be wide; a wide table scrolls.
    looks = {"text-align": "left", "white-space": "pre-wrap", "overflow-wrap": "break-word"}
    return (
        style.format(_readable, escape="html", na_rep="")
        .set_properties(**looks, **{"max-width": "36em"})
        .set_table_styles([{"selector": "th", "props": "text-align: left"}])
    )


def _readable(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if 1e-12 < abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)


def config_table(config: Config) -> Any:
    """The effective configuration: what was set and where; the defaults, folded away, below."""
    from IPython.display import HTML

    chosen, left = [], []
    for key, value in config.model_dump().items():
        origin = config.origin(key).replace(" ", "\N{NO-BREAK SPACE}")
        kept = left if origin == "default" else chosen
        kept.append((key, str(value), origin))
    columns = ("key", "value", "from")
    return HTML(
        f"{table(chosen, columns).to_html()}<details><summary>Keys left at their defaults</summary>"
        f"{table(left, columns).to_html()}</details>"
    )
