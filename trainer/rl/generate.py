"""Answers from a rollout engine, to the end or token by token.

engine = Engine(model, EngineConfig())
for answer in answers(engine, [Request(id="a", prompt=tokens, seeds=(0, 1, 2, 3))]):
    print(answer.tokens, sum(answer.logprobs))
"""

from collections.abc import Iterable, Iterator

from trainer.rl.engine.protocol import RolloutEngine
from trainer.rl.engine.request import Answer, Request


def answers(engine: RolloutEngine, requests: Iterable[Request]) -> Iterator[Answer]:
    """Yield the answers to `requests`, each as soon as it is finished.

    What was asked of the engine before is answered and yielded too.
    """
    for request in requests:
        engine.submit(request)
    while not engine.idle:
        yield from engine.step().finished


def stream(engine: RolloutEngine, request: Request) -> Iterator[int]:
    """Yield the tokens of a request with one answer as they are drawn, its stop tokens included.

    A caller that stops early gives the request up.
    """
    if len(request.seeds) != 1:
        raise ValueError(
            f"request {request.id!r} wants {len(request.seeds)} answers, and one can be streamed; "
            "give it one seed"
        )
    engine.submit(request)
    try:
        while True:
            step = engine.step()
            yield from (drawn.token for drawn in step.drawn if drawn.request_id == request.id)
            if any(answer.request_id == request.id for answer in step.finished):
                return
    finally:
        engine.cancel(request.id)
