"""Prompt bytes and token ids."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pocketvlm.errors import UserError
from pocketvlm.run_file import Task
from pocketvlm.student.families import MEDIA
from pocketvlm.student.families.idefics3 import END, FAKE, GLOBAL, IMAGE, SMOLVLM, START
from pocketvlm.student.pixels import Grid
from pocketvlm.student.prompt import IGNORE, PromptEncoder, answer_lead, pad
from pocketvlm.student.tiny import build_tokenizer

ONE = Grid((32, 32), 1, 1)


def test_prompt_has_no_space_before_the_image_and_none_after_the_assistant(task: Task) -> None:
    text = SMOLVLM.template.of(task)
    assert answer_lead(text) == " "
    assert text == (
        "<|im_start|>User:<__media__>Which digit is in this picture?\nDigit:<end_of_utterance>\nAssistant:"
    )


def test_prompt_equals_the_chat_template_of_the_checkpoint(task: Task, tokenizer: Any) -> None:
    content = [{"type": "image"}, {"type": "text", "text": task.question}]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    assert rendered.replace("<image>", MEDIA) == SMOLVLM.template.of(task)


def test_stream_of_one_tile_is_the_measured_one(encoder: PromptEncoder, geometry: Any, tokenizer: Any) -> None:
    pads = "<image>" * geometry.tokens_per_tile
    expected = (
        f"<fake_token_around_image><row_1_col_1>{pads}\n\n<fake_token_around_image><global-img>{pads}<fake_token_around_image>"
    )
    assert tokenizer.decode(encoder.image(ONE)) == expected


def test_rows_of_a_grid_end_with_a_line_break_but_for_the_last(encoder: PromptEncoder, tokenizer: Any) -> None:
    text = tokenizer.decode(encoder.image(Grid((64, 64), 2, 2))).replace("<image>", "")
    rows = [f"<fake_token_around_image><row_{r}_col_1><fake_token_around_image><row_{r}_col_2>" for r in (1, 2)]
    assert text == "\n".join(rows) + "\n\n<fake_token_around_image><global-img><fake_token_around_image>"


def test_loss_sees_the_answer_and_its_end_only(encoder: PromptEncoder, tokenizer: Any) -> None:
    sample = encoder.sample(ONE, "seven")
    learnt = [label for label in sample.labels if label != IGNORE]
    assert tokenizer.decode(learnt) == " seven<end_of_utterance>"
    assert sample.ids[-len(learnt) :] == learnt
    assert encoder.image_id not in learnt


def test_another_question_has_the_layout_of_the_shipped_one(
    encoder: PromptEncoder, geometry: Any, tokenizer: Any, task: Task
) -> None:
    other = PromptEncoder(tokenizer, geometry, task.model_copy(update={"question": "And now?"}))
    shipped = encoder.prompt(ONE)
    assert encoder.prompt(ONE, "And now?") == other.prompt(ONE) != shipped
    assert encoder.sample(ONE, "one", "And now?") == other.sample(ONE, "one")
    assert encoder.prompt(ONE) == shipped == encoder.prompt(ONE, task.question), "it asks what it asked before"


def test_instructions_stand_in_a_turn_of_their_own_before_the_image(task: Task, geometry: Any, tokenizer: Any) -> None:
    instructed = task.model_copy(update={"system": "You count. {Braces} stay."})
    assert SMOLVLM.template.of(instructed) == (
        "<|im_start|>System: You count. {Braces} stay.<end_of_utterance>\n"
        "User:<__media__>Which digit is in this picture?\nDigit:<end_of_utterance>\nAssistant:"
    )
    messages = [{"role": "system", "content": [{"type": "text", "text": instructed.system}]},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": task.question}]}]  # fmt: skip
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered.replace("<image>", MEDIA) == SMOLVLM.template.of(instructed)
    longer, plain = (len(PromptEncoder(tokenizer, geometry, asked).prompt(ONE)) for asked in (instructed, task))
    assert longer > plain


def test_a_template_of_the_run_file_is_the_whole_prompt_for_every_question(task: Task, geometry: Any, tokenizer: Any) -> None:
    own = Task.model_validate(task.model_dump() | {"prompt_template": "{question} {image}\n", "system": None})
    assert SMOLVLM.template.of(own) == "Which digit is in this picture?\nDigit: <__media__>\n"
    encoder = PromptEncoder(tokenizer, geometry, own)
    assert answer_lead(encoder.shipped) == "", "it ends in white space already"
    learnt = [label for label in encoder.sample(ONE, "one", "So?").labels if label != IGNORE]
    assert tokenizer.decode(learnt) == "one<end_of_utterance>"
    assert tokenizer.decode(encoder.prompt(ONE, "So?")).startswith("So? <fake_token_around_image>")


@pytest.mark.parametrize(
    "template", ["{image}", "{question}", "{image}{image}{question}", "{system}{image}{question}", "{picture}"]
)
def test_a_template_without_its_parts_is_refused(task: Task, template: str) -> None:
    with pytest.raises(ValueError, match=r"must hold each of \{image\}, \{question\} once|\{picture\} is no placeholder"):
        Task.model_validate(task.model_dump() | {"prompt_template": template})


def test_the_media_marker_is_never_in_training_text(encoder: PromptEncoder, tokenizer: Any) -> None:
    assert MEDIA not in tokenizer.decode(encoder.sample(ONE, "one").ids)


def test_filling_up_adds_no_labels(encoder: PromptEncoder) -> None:
    short, long = encoder.sample(ONE, "one"), encoder.sample(ONE, "none of these")
    ids, labels = pad([short, long], pad_id=2)
    assert len(ids[0]) == len(ids[1]) == len(labels[0])
    assert sum(label != IGNORE for label in labels[0]) == sum(label != IGNORE for label in short.labels)


def without(token: str) -> PreTrainedTokenizerFast:
    """The tiny student's tokenizer with another name in the place of one token."""
    content = json.loads(build_tokenizer().backend_tokenizer.to_str())
    other = token.replace("<", "[")
    content["model"]["vocab"] = {other if text == token else text: i for text, i in content["model"]["vocab"].items()}
    for added in content["added_tokens"]:
        added["content"] = other if added["content"] == token else added["content"]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), name_or_path="owner/other")


@pytest.mark.parametrize("token", [START, END, FAKE, GLOBAL, IMAGE])
def test_a_student_without_a_token_of_the_layout_is_refused_by_its_name(token: str, geometry: Any, task: Task) -> None:
    message = rf"run\.student\.model: .* owner/other has not '{re.escape(token)}' as one token"
    with pytest.raises(UserError, match=message) as caught:
        PromptEncoder(without(token), geometry, task).image(ONE)
    assert caught.value.exit_code == 2


def test_a_grid_beyond_the_rows_of_a_vocabulary_is_refused_by_its_name(geometry: Any, task: Task) -> None:
    encoder = PromptEncoder(without("<row_2_col_1>"), geometry, task)
    assert encoder.image(ONE)
    with pytest.raises(UserError, match="owner/other has not '<row_2_col_1>'"):
        encoder.image(Grid((64, 64), 2, 2))


def test_a_grid_beyond_the_vocabulary_is_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(ValueError, match="7x1"):
        encoder.image(Grid((32, 224), 7, 1))
