"""A plan as tables on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any]) -> None:
    """Print a plan, as `plan.make_plan` returns it, to standard output."""
    console = Console(markup=False)
    where, batch, model = report["slice"], report["batch"], report["model"]
    head = _table("the run")
    head.add_row("slice", f"{where['topology']}, {where['chips']} {where['chip']} chips")
    head.add_row("mesh", ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items()))
    head.add_row("model", f"{model['params']:,} weights, {model['dtype']}, from {model['from']}")
    if teacher := report["teacher"]:
        flops = f"{teacher['flops']:.4g} FLOPs a sequence"
        head.add_row("teacher", f"{teacher['params']:,} weights, {teacher['dtype']}, from {teacher['from']}; {flops}")
    head.add_row("batch", f"{batch['sequences']} sequences, {batch['per_chip']:g} a chip")
    head.add_row("sequence length", f"{batch['seq_len']}, from {batch['seq_len_from']}")
    head.add_row("fits", "yes" if report["fits"] else f"no: {report['refused']}")
    if "largest_batch_per_chip" in report:
        head.add_row("largest batch", f"{report['largest_batch_per_chip']} sequences a chip")
    console.print(head)
    if report["fits"]:
        console.print(_memory(report["memory"]))
        console.print(_work(report))
        console.print(_collectives(report))
        console.print(_recipe(report["recipe"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(columns), box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns or ("", "")):
        table.add_column(column, justify="right" if columns and number else "left", no_wrap=bool(columns))
    return table


def _memory(memory: dict[str, float]) -> Table:
    table = _table("HBM per chip", "part", "MiB", "of HBM")
    for name, size in memory.items():
        table.add_row(name.replace("_", " "), f"{size / 2**20:,.1f}", f"{size / memory['hbm']:.1%}")
    return table


def _work(report: dict[str, Any]) -> Table:
    flops, train, prune = report["flops"], report["train"], report["prune"]
    table = _table("work per step and chip")
    waste = "; WASTE above 5 %" if flops["waste"] else ""
    ratio = f"{flops['ratio']:.4f} x the model's {flops['model']:.4g}"
    table.add_row("FLOPs, compiled", f"{flops['hlo']:.4g}, {ratio}{waste}")
    if flops["mxu"] > 1.01 * flops["hlo"]:
        table.add_row("FLOPs, multiplied", f"{flops['mxu']:.4g}; float32 at a high precision takes several passes")
    table.add_row("of them with a float32 operand", f"{flops['float32_operands']:.1%}")
    for name, step in (("train step", train), ("prune step", prune)):
        if step and "refused" in step:
            table.add_row(name, f"does not fit: {step['refused']}")
        elif step:
            parts = ", ".join(f"{part} {1e3 * seconds:.2f}" for part, seconds in step["bounds"].items())
            table.add_row(
                name, f"{_BOUND[name]} {1e3 * step['seconds']:.2f} ms, bound by {step['bound_by']} (ms: {parts})"
            )
    table.add_row("if nothing overlaps", f"train step {1e3 * train['seconds_without_overlap']:.2f} ms")
    if prune and "refused" not in prune:
        sorts = ", ".join(f"{s['count']} of {s['elements']:,}" for s in prune["sorts"]) or "none"
        table.add_row("sorts in the prune step", sorts)
        table.add_row("its temporaries", f"{prune['temporaries'] / 2**20:,.1f} MiB")
        table.add_row("passes of each of its loops, assumed", str(prune["passes"]))
    return table


_BOUND = {"train step": ">=", "prune step": "about"}  # how many passes a prune takes depends on the weights


def _collectives(report: dict[str, Any]) -> Table:
    table = _table("collectives per chip", "step", "kind", "count", "blocking", "payload MB", "sent MB", "largest MB")
    for name in ("train", "prune"):
        for row in (report[name] or {}).get("collectives", ()):
            sizes = (f"{row[key] / 1e6:,.3f}" for key in ("bytes", "wire_bytes", "largest_array"))
            each = f"{name}, per pass" if row["per_pass"] else name
            table.add_row(each, row["kind"], str(row["count"]), str(row["blocking"]), *sizes)
    return table


def _recipe(recipe: dict[str, Any]) -> Table:
    table = _table("the whole recipe, at these bounds (a run takes longer)")
    table.add_row("steps, prunes", f"{recipe['steps']:,}, {recipe['prunes']:,}")
    table.add_row("tokens/s", f"<= {recipe['tokens_per_second']:,.0f}")
    table.add_row("MFU", f"<= {recipe['mfu_bound']:.1%}")
    table.add_row("hours", f">= {recipe['hours']:.3f} ({recipe['chip_hours']:.2f} chip hours)")
    cost = recipe["cost_usd"]
    table.add_row("cost", "give --price USD_PER_CHIP_HOUR" if cost is None else f">= {cost:,.2f} USD")
    return table
