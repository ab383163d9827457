"""The configured task and its environments. Free of torch."""

from trainer.rl.tasks.arithmetic import Arithmetic
from trainer.rl.tasks.config import TaskConfig
from trainer.rl.tasks.countdown import Countdown
from trainer.rl.tasks.environments import AnswerEnvironment
from trainer.rl.tasks.jsonl import JsonlTask
from trainer.rl.tasks.own import load_factory
from trainer.rl.tasks.question import Codec, Environment, Question, Task
from trainer.rl.tasks.sorting import Sorting


def build_task(config: TaskConfig, *, seed: int) -> Task:
    """The task `config` names.

    Raises DataError where its file is no good, RecipeError where its factory is not found.
    """
    match config.kind:
        case "arithmetic":
            return Arithmetic(seed=seed, digits=config.digits, operations=config.operations)
        case "sorting":
            return Sorting(seed=seed, length=config.length, digits=config.digits)
        case "countdown":
            return Countdown(seed=seed, length=config.length, format_credit=config.format_credit)
        case "jsonl":
            return JsonlTask(
                config.path,
                seed=seed,
                prompt_field=config.prompt_field,
                answer_field=config.answer_field,
                match=config.match,
            )
        case "own":
            return load_factory("rl.task.factory", config.factory)(seed=seed)


def build_environment(
    config: TaskConfig, task: Task, codec: Codec, question: Question
) -> Environment:
    """The environment in which `question` is answered."""
    if config.environment:
        make = load_factory("rl.task.environment", config.environment)
        return make(task, codec, question)
    return AnswerEnvironment(
        task,
        codec,
        question,
        max_turns=config.max_turns,
        retry_text=config.retry_text,
        turn_discount=config.turn_discount,
    )
