import json

from trainer.data.bpe import END_OF_TEXT
from trainer.data.documents import BadDocument, Document, Place
from trainer.data.encoding import DocumentEncoder, Encoded, Refused
from trainer.data.tokenizer import Tokenizer


def documents(*contents):
    return [Document(Place(0, n), content) for n, content in enumerate(contents, 1)]


def test_texts_end_with_the_end_token_and_keep_their_places(tokenizer):
    encoder = DocumentEncoder(tokenizer, "pretrain")
    encoded = list(encoder.encode(documents("the model", "", "loss")))
    assert [e.place.line for e in encoded] == [1, 3]
    for document, text in zip(encoded, ["the model", "loss"], strict=True):
        assert isinstance(document, Encoded)
        assert document.mask is None
        assert document.tokens[-1] == tokenizer.eos_id
        assert tokenizer.decode(document.tokens) == text


def test_what_cannot_be_used_is_refused_in_its_place(tokenizer):
    encoder = DocumentEncoder(tokenizer, "pretrain")
    bad = BadDocument(Place(0, 9), "is binary")
    found = list(encoder.encode([bad, *documents("a", None, "b", 3), bad]))
    assert [type(d) for d in found] == [Refused, Encoded, Refused, Encoded, Refused, Refused]
    assert [d.place.line for d in found] == [9, 1, 2, 3, 4, 9]
    assert found[2].reason == "has NoneType where text should be"


def test_of_answers_alone_the_question_is_masked(tokenizer):
    encoder = DocumentEncoder(tokenizer, "answers")
    bad = BadDocument(Place(0, 9), "is bad")
    found = list(encoder.encode([*documents(["the", " model"], ["", ""], "text"), bad]))
    assert [d.place.line for d in found] == [1, 3, 9]
    (question,) = tokenizer.encode_batch(["the"])
    assert found[0].tokens[: len(question)].tolist() == question.tolist()
    assert tokenizer.decode(found[0].tokens[found[0].mask]) == " model"
    assert found[0].mask[-1]
    assert found[0].tokens[-1] == tokenizer.eos_id
    assert [d.reason for d in found[1:]] == [
        "has no list of two texts, a question and its answer",
        "is bad",
    ]


def test_conversations_carry_a_mask(tokenizer, chat_source):
    records = [json.loads(line)["messages"] for line in chat_source.read_text().splitlines()]
    encoder = DocumentEncoder(tokenizer, "chat")
    found = list(encoder.encode([*documents(*records, [{}]), BadDocument(Place(0, 99), "is bad")]))
    assert all(isinstance(d, Encoded) and d.mask[-1] and not d.mask[0] for d in found[:-2])
    assert [d.reason for d in found[-2:]] == ["has a message 1 without 'role'", "is bad"]


def test_a_begin_token_is_put_in_front_of_texts(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    text = json.loads((tmp_path / "tokenizer.json").read_text())
    text["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "B", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"B": {"id": "B", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    begins = Tokenizer(json.dumps(text), eos_token=END_OF_TEXT, config={})
    (document,) = DocumentEncoder(begins, "pretrain").encode(documents("the"))
    assert document.tokens[0] == 1
    assert document.tokens[-1] == 0
