"""Prompts within their budget."""

import json

import pytest

from trainer.errors import DataError
from trainer.rl.tasks.arithmetic import Arithmetic
from trainer.rl.tasks.jsonl import JsonlTask
from trainer.rl.tasks.prompts import PromptBook


def test_a_prompt_is_its_question_in_tokens(codec):
    book = PromptBook(Arithmetic(seed=0), codec, max_prompt_tokens=16)
    prompt = book.prompt(3)
    assert prompt.tokens == (256, *prompt.question.text.encode())
    assert prompt == book.prompt(3)


def test_a_prompt_over_the_budget_names_itself_and_the_remedy(codec, tmp_path):
    path = tmp_path / "tasks.jsonl"
    lines = [{"prompt": "x" * n, "answer": "1"} for n in (3, 30)]
    path.write_text("\n".join(map(json.dumps, lines)))
    book = PromptBook(JsonlTask(path, seed=0), codec, max_prompt_tokens=16)
    says = r"tasks\.jsonl:2: the prompt has 31 tokens, the budget is 16; raise rl\.max_prompt"
    with pytest.raises(DataError, match=says):
        book.verify()


def test_made_up_questions_need_no_verifying(codec):
    book = PromptBook(Arithmetic(seed=0), codec, max_prompt_tokens=1)
    book.verify()
    with pytest.raises(DataError, match="arithmetic question 0: the prompt has"):
        book.prompt(0)
