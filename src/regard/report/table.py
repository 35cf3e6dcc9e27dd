"""The table of a Record: what each allocator kept, how long it took, where it looked and what the prefill costs."""

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from regard.record import Answer, Look, Realization, Record


def table(record: Record) -> Group:
    """One row for each question and allocator, and below one line for each that says why."""
    grid = Table(title=escape(_title(record)), title_justify="left", header_style="bold")
    if len(record.questions) > 1:
        grid.add_column("question", overflow="fold")
    grid.add_column("allocator", no_wrap=True)
    for name in ("tokens", "decide ms", "on nearest quarter", "prefill GMACs"):
        grid.add_column(name, justify="right")
    for look in record.looks:
        cells = [
            look.allocator,
            f"{look.tokens_in} → {look.tokens_out}",
            f"{look.seconds * 1e3:.1f}",
            f"{look.nearest_quarter:.0%}",
            f"{look.macs_before / 1e9:,.0f} → {look.macs_after / 1e9:,.0f}",
        ]
        if len(record.questions) > 1:
            cells.insert(0, escape(record.questions[look.question]))
        last = look is record.looks[-1] or record.looks[record.looks.index(look) + 1].question != look.question
        grid.add_row(*cells, end_section=last)
    grid.caption = (
        "on nearest quarter: share of the kept tokens on the quarter of the image nearest to the question, blind 25%. "
        f"prefill: {record.language_model} with {record.prompt_tokens} text tokens, by formula."
    )
    return Group(grid, *(_reason(record, look, why) for look in record.looks if (why := look.realization)))


def _reason(record: Record, look: Look, why: Realization) -> Text:
    """The states, the weights of the ways, and whether anything was asked."""
    asked = f", “{record.questions[look.question]}”" if len(record.questions) > 1 else ""
    states = [f"{name} {state:.2f}{' fixed' if name in why.fixed else ''}" for name, state in why.states.items()]
    mix = [f"{name} {share:.0%}" for name, share in why.mix.items()]
    alone = "; nothing was asked: relevance of the image alone" if why.image_only else ""
    return Text.assemble((f"{look.allocator}{asked}: ", "bold"), f"{', '.join(states)}; {', '.join(mix)}{alone}")


def answers_table(record: Record, more: int = 0) -> Group:
    """One row for each answer, the untouched model's first, and what was answered below. more: images than this one."""
    title = _title(record) + (f", and {more} more image{'s' if more > 1 else ''}" if more else "")
    grid = Table(title=escape(title), title_justify="left", header_style="bold")
    grid.add_column("allocator", no_wrap=True)
    for name in ("visual tokens", "vision", "+ decide", "+ prefill", "= first token", "per token", "memory"):
        grid.add_column(name, justify="right")
    for answer in record.answers:
        stages = [answer.seconds[stage] for stage in ("vision", "decide", "prefill")]
        grid.add_row(
            name_of(answer),
            str(answer.visual_tokens),
            *(f"{seconds * 1e3:,.1f}" for seconds in (*stages, answer.first_token)),
            "-" if answer.per_token is None else f"{answer.per_token * 1e3:,.1f}",
            memory_of(answer),
            end_section=answer.allocator is None,
        )
    made = record.made
    grid.caption = (
        f"In milliseconds ({made.get('timed', 'once')}): {made.get('model', 'the model')} on "
        f"{made.get('device', 'this machine')}. "
        f"Memory: at the peak, and how much of it is new ({made.get('memory', 'not measured')})."
    )
    said = [Text.assemble((f"{name_of(answer)}: ", "bold"), answer.text or "(nothing)") for answer in record.answers]
    return Group(grid, *said)


def name_of(answer: Answer) -> str:
    """Which tokens the model got."""
    return "all tokens" if answer.allocator is None else answer.allocator


def memory_of(answer: Answer) -> str:
    """The peak in MB and what of it was added, or a dash."""
    if answer.memory_peak is None or answer.memory_before is None:
        return "-"
    added = max(0, answer.memory_peak - answer.memory_before)
    return f"{answer.memory_peak / 1e6:,.0f} MB (+{added / 1e6:,.0f})"


def _title(record: Record) -> str:
    picture, look = record.picture, record.looks[0] if record.looks else None
    kept = "" if look is None else f", budget {look.budget} tokens ({look.tokens_out / look.tokens_in:.1%} kept)"
    asked = f" “{record.questions[0]}”" if len(record.questions) == 1 else ""
    return f"{picture.name} {picture.width} x {picture.height}{asked}{kept}"
