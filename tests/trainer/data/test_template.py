import pytest

from trainer.data.content import Message, UnusableError
from trainer.data.template import CHATML, ChatTemplate, Piece
from trainer.errors import DataError

CHAT = [Message("system", "be brief"), Message("user", "{{ 7*7 }}"), Message("assistant", " ok ")]


def test_the_template_and_the_messages_are_told_apart():
    assert ChatTemplate(CHATML, {}).pieces(CHAT) == [
        Piece("<|im_start|>system\n", None),
        Piece("be brief", 0),
        Piece("<|im_end|>\n<|im_start|>user\n", None),
        Piece("{{ 7*7 }}", 1),
        Piece("<|im_end|>\n<|im_start|>assistant\n", None),
        Piece(" ok ", 2),
        Piece("<|im_end|>\n", None),
    ]


def test_templates_know_special_tokens_and_the_usual_extras():
    text = (
        "{{ bos_token }}{% for m in messages %}"
        "{%- if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ [1, 'ä'] | tojson }}"
    )
    pieces = ChatTemplate(text, {"bos_token": "<s>"}).pieces(CHAT[1:])
    assert [piece.text for piece in pieces] == ["<s>", "{{ 7*7 }}", " ok ", '[1, "ä"]']


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", "message 1 .system. that the"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats"),
        ("{% for m in messages|reverse %}{{ m.content }}{% endfor %}", "moves"),
        ("{{ raise_exception('roles must alternate') }}", "refused .*roles must alternate"),
        ("{{ messages[0].content + 1 }}", "is refused by the tokenizer's chat template"),
        ("{{ messages.append(1) }}", "is refused .*unsafe"),
        ("{{ ''.__class__.__mro__ }}", "is refused .*unsafe"),
    ],
)
def test_conversations_that_a_template_does_not_take_are_refused(text, reason):
    with pytest.raises(UnusableError, match=reason):
        ChatTemplate(text, {}).pieces(CHAT)


def test_a_template_that_is_not_jinja_is_an_error_of_the_tokenizer():
    with pytest.raises(DataError, match=r"chat template is not valid \(line 2"):
        ChatTemplate("\n{% for %}", {})
