"""Served models against a server that drops, delays, cuts short and lies."""

from __future__ import annotations

import datetime
import email.utils
import json
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bdaudit.blackbox import BlackBoxOptions, Meter, ServedBlackBox, TransportSettings
from bdaudit.errors import BudgetError, ConfigError, ModelError, RemoteError
from bdaudit.models import ONE_SCORE, ModelSettings
from tests.blackbox import faulty_server as faulty
from tests.blackbox.faulty_server import FaultyServer
from tests.twins import original_twin, twin_sample

NET = original_twin()
QUICK = {"backoff_s": 0.001, "max_wait_s": 2.0, "timeout": 5.0}


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyServer]:
    with FaultyServer(NET).running() as server:
        yield server


@pytest.fixture
def server(running: FaultyServer) -> FaultyServer:
    running.reset()
    return running


def images_of(n: int, seed: int = 0) -> Tensor:
    return twin_sample(n, seed).images


def ask_of(
    server: FaultyServer, *, transport: dict[str, Any] | None = None, **options: Any
) -> ServedBlackBox:
    settled = BlackBoxOptions(
        **{"request_size": 4, **options},
        transport=TransportSettings(**{**QUICK, **(transport or {})}),
    )
    return ServedBlackBox(server.url, name="defended", options=settled)


@pytest.mark.parametrize("extensions", [[], ["binary_tensor_data"]], ids=["json", "binary"])
def test_answers_are_the_models_in_order(server: FaultyServer, extensions: list[str]) -> None:
    server.extensions = extensions
    images = images_of(11)
    with ask_of(server) as box:
        answers = box.ask(images)
        assert box.n_queries == server.n_answered == 11
        assert box.score_kind == "logits"
    assert answers.shape == (11, 4)
    torch.testing.assert_close(answers, NET(images))
    sent_as = {head["Content-Type"] for method, _, head in server.seen if method == "POST"}
    assert sent_as == {"application/octet-stream" if extensions else "application/json"}
    assert [len(part) for part in server.answered] == [4, 4, 3]


RECOVERABLE = {
    "drop": faulty.drop,
    "429": faulty.status(429),
    "503": faulty.status(503),
    "500": faulty.status(500),
    "cut connection": faulty.cut_connection,
    "cut body": faulty.cut_body,
}


@pytest.mark.parametrize("concurrency", [1, 3])
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    faults=st.lists(st.sampled_from(sorted(RECOVERABLE)), max_size=5),
    n_images=st.integers(1, 13),
    batch_size=st.integers(1, 5),
)
def test_recoverable_faults_lose_nothing_and_cost_nothing(
    server: FaultyServer, concurrency: int, faults: list[str], n_images: int, batch_size: int
) -> None:
    server.reset()
    server.faults = [RECOVERABLE[name] for name in faults]
    images = images_of(n_images)
    with ask_of(
        server, request_size=batch_size, transport={"concurrency": concurrency, "retries": 5}
    ) as box:
        meter = Meter(box, max_queries=n_images)
        torch.testing.assert_close(meter.ask(images), NET(images))
        assert meter.n_left == 0
        assert box.n_queries == n_images
        # No answer that was written in full was asked for again.
        assert server.n_answered == n_images


def test_after_a_failure_only_the_rest_is_paid_for(server: FaultyServer) -> None:
    server.faults = [faulty.delay(0), faulty.status(503)]
    images = images_of(12)
    with ask_of(server, transport={"retries": 0}) as box:
        meter = Meter(box, max_queries=12)
        with pytest.raises(RemoteError, match=r"status 503: .*as told"):
            meter.ask(images)
        paid = box.n_queries
        assert 4 <= paid < 12
        assert meter.n_spent == paid
        assert box.n_unpaid(images) == 12 - paid
        torch.testing.assert_close(meter.ask(images), NET(images))
        assert (meter.n_spent, box.n_queries, meter.n_left) == (12, 12, 0)
        # Asked anew, it is paid for anew: answers are kept from failures only.
        with pytest.raises(BudgetError):
            meter.ask(images[:1])
        assert box.n_unpaid(images) == 12


def test_parallel_requests_overlap_and_keep_their_order(server: FaultyServer) -> None:
    # The first chunks are the slowest, so answers arrive in about the opposite order.
    server.faults = [faulty.delay(0.2), faulty.delay(0.1), faulty.delay(0.05)]
    images = images_of(16)
    with ask_of(server, transport={"concurrency": 4}) as box:
        torch.testing.assert_close(box.ask(images), NET(images))
    assert server.most_at_once == 4


@pytest.mark.parametrize("concurrency", [1, 3])
def test_equal_images_are_paid_for_as_often_as_they_occur(
    server: FaultyServer, concurrency: int
) -> None:
    images = images_of(4).repeat(3, 1, 1, 1)
    with ask_of(server, transport={"concurrency": concurrency}) as box:
        assert box.n_unpaid(images) == 12
        torch.testing.assert_close(box.ask(images), NET(images))
        assert box.n_queries == server.n_answered == 12


def test_one_refusal_ends_the_waiting_of_all(server: FaultyServer) -> None:
    server.faults = [faulty.status(503), faulty.delay(0.3), faulty.status(400)]
    with ask_of(
        server, request_size=1, transport={"concurrency": 3, "backoff_s": 30.0, "max_wait_s": 60.0}
    ) as box:
        started = time.monotonic()
        with pytest.raises(ModelError, match="status 400"):
            box.ask(images_of(20))
        assert time.monotonic() - started < 10  # not the 15 to 30 seconds before the next try
        assert box.n_queries < 20


def test_an_answer_that_comes_too_late_is_asked_for_again(server: FaultyServer) -> None:
    server.faults = [faulty.delay(0.5)]
    with ask_of(server, transport={"timeout": 0.2}) as box:
        torch.testing.assert_close(box.ask(images_of(3)), NET(images_of(3)))
        assert box.n_queries == 3
    assert len([1 for method, *_ in server.seen if method == "POST"]) == 2


def test_a_dripping_answer_meets_the_deadline(server: FaultyServer) -> None:
    server.faults = [faulty.drip]
    with (
        ask_of(server, transport={"deadline_s": 0.2, "retries": 0}) as box,
        pytest.raises(RemoteError, match=r"not all arrived within 0.2 s"),
    ):
        box.ask(images_of(3))


def test_retry_after_is_honoured_by_every_thread(server: FaultyServer) -> None:
    server.faults = [faulty.status(429, Retry_After="1")]
    with ask_of(server, transport={"concurrency": 2}) as box:
        started = time.monotonic()
        box.ask(images_of(4))
        assert time.monotonic() - started >= 1.0


def test_retry_after_may_be_a_date_and_may_be_too_long(server: FaultyServer) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    future = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    server.faults = [
        faulty.status(503, Retry_After=email.utils.format_datetime(past, usegmt=True)),
        faulty.status(503, Retry_After="soon"),
        faulty.status(429, Retry_After=email.utils.format_datetime(future, usegmt=True)),
    ]
    with ask_of(server) as box, pytest.raises(RemoteError, match=r"asks to wait 3[56]"):
        box.ask(images_of(2))
    assert server.faults == []


def test_queries_a_second_are_images_a_second(server: FaultyServer) -> None:
    with ask_of(server, transport={"qps": 40.0, "concurrency": 3}) as box:
        started = time.monotonic()
        box.ask(images_of(16))
        # The first four go at once, the next twelve each wait for those before.
        assert time.monotonic() - started >= 12 / 40


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (faulty.web_page, RemoteError, r"web page \(HTML\)"),
        (faulty.something_else, ModelError, r"JSON object with outputs, got .'hello'"),
        (faulty.status(400), ModelError, "refused .status 400.: .*as told: 400"),
        (faulty.status(413), ModelError, "request_size"),
        (faulty.status(302, Location="http://elsewhere.test/"), RemoteError, "elsewhere.test"),
        (faulty.status(204), RemoteError, "expected status 200, got 204"),
        (faulty.flood, RemoteError, "at most 500000 bytes"),
        (faulty.lie(shape=[2, 4]), ModelError, "claims the shape .2, 4. and has 12 values"),
        (faulty.lie(shape=[4, 3]), ModelError, r"expected scores \(3, 4\).*got float32 \(4, 3\)"),
        (faulty.lie(shape=[-3, -4]), ModelError, "claims the shape"),
        (faulty.lie(data=[float("nan")] * 12), ModelError, "NaN"),
        (faulty.lie(data=["a"] * 12), ModelError, "cannot be read"),
        (faulty.lie(data=[1e300] * 12), ModelError, "NaN or infinity"),
        (faulty.deep, RemoteError, "no JSON"),
        (faulty.lie(name="embedding"), ModelError, "expected the output 'scores'"),
        (faulty.lie(datatype="BYTES"), ModelError, "holds no numbers"),
        (faulty.lie(parameters={"binary_data_size": 48}), RemoteError, "0 of 48 bytes"),
    ],
)
def test_nonsense_is_named(
    server: FaultyServer, fault: faulty.Fault, error: type[Exception], said: str
) -> None:
    server.faults = [fault]
    transport = {"retries": 0, "max_response_bytes": 500_000}
    with ask_of(server, transport=transport) as box, pytest.raises(error, match=said) as caught:
        box.ask(images_of(3))
    assert "127.0.0.1" in str(caught.value) or "defended" in str(caught.value)


def test_a_page_instead_of_metadata(server: FaultyServer) -> None:
    server.metadata_fault = faulty.web_page
    with pytest.raises(RemoteError, match=r"web page \(HTML\)"):
        ask_of(server)
    server.metadata_fault = lambda handler, _: handler.reply(b'{"hello": 1}', "application/json")
    with pytest.raises(RemoteError, match="expected a description of a model"):
        ask_of(server)
    assert len(server.seen) == 2  # nothing there was worth another try


def test_nobody_at_home() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    transport = TransportSettings(retries=2, backoff_s=0.001)
    with pytest.raises(RemoteError, match="asked 3 times; last: ConnectError"):
        ServedBlackBox(
            f"http://127.0.0.1:{port}/v2/models/twin",
            name="defended",
            options=BlackBoxOptions(transport=transport),
        )


def test_an_unknown_model(server: FaultyServer) -> None:
    url = server.url.replace("twin", "triplet")
    with pytest.raises(ModelError, match=r"status 404: .*no such model.*check name and version"):
        ServedBlackBox(url, name="defended")


def test_the_version_is_part_of_the_address(server: FaultyServer) -> None:
    with ServedBlackBox(f"{server.url}/versions/1", name="defended") as box:
        assert box.endpoint.version == "1"
        assert box.identity().details["versions"] == "1"


def test_the_token_is_sent_and_never_shown(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.token = "open-sesame-42"
    monkeypatch.setenv("BDAUDIT_TEST_TOKEN", "open-sesame-42")
    with ask_of(server, transport={"token_env": "BDAUDIT_TEST_TOKEN"}) as box:
        box.ask(images_of(2))
        shown = [repr(box), repr(box.identity()), str(box.notes)]
        # Whatever it is made of, as a traceback with local names would show it.
        shown += [repr(part) for part in vars(box).values()]
    monkeypatch.setenv("BDAUDIT_TEST_TOKEN", "wrong-sesame-43")
    with pytest.raises(RemoteError, match=r"access refused .status 401; a token was sent.") as no:
        ask_of(server, transport={"token_env": "BDAUDIT_TEST_TOKEN"})
    assert "Bearer [token]" in str(no.value)
    for text in (*shown, str(no.value), caplog.text):
        assert "sesame" not in text
    with pytest.raises(RemoteError, match="no token was sent"):
        ask_of(server)
    monkeypatch.delenv("BDAUDIT_TEST_TOKEN")
    with pytest.raises(ConfigError, match="variable BDAUDIT_TEST_TOKEN, got none"):
        ask_of(server, transport={"token_env": "BDAUDIT_TEST_TOKEN"})
    monkeypatch.setenv("BDAUDIT_TEST_TOKEN", "sesame\nX-Injected: 1")
    with pytest.raises(ConfigError, match="no header may carry") as malformed:
        ask_of(server, transport={"token_env": "BDAUDIT_TEST_TOKEN"})
    assert "sesame" not in str(malformed.value)


def test_redirects_take_the_token_nowhere(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDAUDIT_TEST_TOKEN", "open-sesame-42")
    with FaultyServer(NET).running() as other:
        server.metadata_fault = faulty.status(307, Location=other.url)
        with pytest.raises(RemoteError, match="which is not followed"):
            ask_of(server, transport={"token_env": "BDAUDIT_TEST_TOKEN"})
        assert other.seen == []


def test_tls_is_verified(tmp_path: Any) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    secure = FaultyServer(NET)
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    url = secure.url.replace("http:", "https:")
    with secure.running():
        with pytest.raises(RemoteError, match=r"certificate is not trusted.*ca_file"):
            ServedBlackBox(url, name="defended")
        trusting = TransportSettings(ca_file=str(tmp_path / "ca.pem"))
        options = BlackBoxOptions(transport=trusting)
        with ServedBlackBox(url, name="defended", options=options) as box:
            torch.testing.assert_close(box.ask(images_of(2)), NET(images_of(2)))
    with pytest.raises(ConfigError, match="ca_file"):
        ServedBlackBox(
            url,
            name="defended",
            options=BlackBoxOptions(transport=TransportSettings(ca_file="missing.pem")),
        )


def test_eight_bit_inputs_get_what_they_can_hold(server: FaultyServer) -> None:
    server.metadata["inputs"][0] |= {"datatype": "UINT8", "shape": [-1, 8, 8, 1]}
    server.answer = lambda images: NET(images.permute(0, 3, 1, 2) / 255)
    try:
        images = images_of(5)
        with ask_of(server) as box:
            assert (box.grid, box.layout.order, box.image_shape) == (255, "NHWC", (1, 8, 8))
            torch.testing.assert_close(box.ask(images), NET((images * 255).round() / 255))
    finally:
        server.answer = NET
    assert all((part == part.round()).all() and part.max() > 1 for part in server.answered)


def test_half_precision_travels_in_binary(server: FaultyServer) -> None:
    server.metadata["inputs"][0]["datatype"] = "FP16"
    with ask_of(server) as box:
        torch.testing.assert_close(box.ask(images_of(3)), NET(images_of(3).half().float()))
    with ask_of(server, binary=False) as box, pytest.raises(ModelError, match="FP16"):
        box.ask(images_of(3))


def test_a_fixed_batch_is_filled_up_and_not_paid_for(server: FaultyServer) -> None:
    server.metadata["inputs"][0]["shape"] = [8, 1, 8, 8]
    images = images_of(11)
    with ask_of(server) as box:
        torch.testing.assert_close(box.ask(images), NET(images))
        assert box.n_queries == 11
    assert [len(part) for part in server.answered] == [8, 8]


def test_normalisation_is_applied_before_sending(server: FaultyServer) -> None:
    settled = ModelSettings(mean=(0.25,), std=(0.5,))
    with ask_of(server, settings=settled) as box:
        torch.testing.assert_close(box.ask(images_of(3)), NET((images_of(3) - 0.25) / 0.5))


def test_labels_only(server: FaultyServer) -> None:
    server.metadata["outputs"][0] |= {"name": "scores", "datatype": "INT64", "shape": [-1]}
    server.output_type = "INT64"
    server.answer = lambda images: NET(images).argmax(dim=1)
    try:
        options = BlackBoxOptions(settings=ModelSettings(num_classes=4))
        with ServedBlackBox(server.url, name="defended", feedback="labels", options=options) as box:
            assert torch.equal(box.ask(images_of(5)), NET(images_of(5)).argmax(dim=1))
            assert box.score_kind is None
        with pytest.raises(ModelError, match="expected one output of scores"):
            ServedBlackBox(server.url, name="defended", options=options)
    finally:
        server.answer = NET


def test_a_server_that_describes_nothing_needs_the_shapes(server: FaultyServer) -> None:
    server.metadata = {"name": "twin", "versions": [], "platform": ""}
    with pytest.raises(ModelError, match="pass image_shape"):
        ask_of(server)
    with pytest.raises(ModelError, match="pass num_classes"):
        ask_of(server, settings=ModelSettings(image_shape=(1, 8, 8)))
    with ask_of(server, settings=ModelSettings(image_shape=(1, 8, 8), num_classes=4)) as box:
        torch.testing.assert_close(box.ask(images_of(3)), NET(images_of(3)))
        assert "does not describe its input" in box.notes[0]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}], "expected one input of images"),
        (
            [{"name": "a", "datatype": "FP32", "shape": [-1, 1, 8, 8]}] * 2,
            "expected one input that",
        ),
        ([{"name": "a", "datatype": "FP32", "shape": [-1, 64]}], "expected one input of images"),
        ([{"name": "a"}], "inputs or outputs cannot be read"),
    ],
)
def test_other_inputs_are_refused(server: FaultyServer, inputs: Any, said: str) -> None:
    server.metadata["inputs"] = inputs
    with pytest.raises((ModelError, RemoteError), match=said):
        ask_of(server, transport={"retries": 0})


def test_a_wrong_class_count_is_seen_before_anything_is_asked(server: FaultyServer) -> None:
    with pytest.raises(ModelError, match="pass num_classes=4"):
        ask_of(server, settings=ModelSettings(num_classes=10))
    assert server.n_answered == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://host/v2/model/twin",
        "ftp://host/v2/models/twin",
        "http://user:sesame@host/v2/models/twin",
        "http://host/v2/models/twin?key=sesame",
        "http://host/v2/models/",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="endpoint: expected http") as caught:
        ServedBlackBox(url, name="defended")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        {"timeout": 0},
        {"qps": -1.0},
        {"concurrency": 0},
        {"retries": -1},
        {"qps": float("nan")},
    ],
)
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        TransportSettings(**setting)


def test_the_record_of_a_served_model_is_plain_text(server: FaultyServer) -> None:
    with ask_of(server) as box:
        identity = box.identity()
    assert identity.source == server.url
    assert identity.sha256 is None
    json.dumps(dict(identity.details))
    assert identity.changes(identity) == []


LIGHT_AND_DARK = torch.linspace(0.02, 0.98, 12).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()


def one_logit(images: Tensor) -> Tensor:
    return 8 * (images.mean((1, 2, 3)) - 0.5)[:, None]


@pytest.fixture
def one_score(server: FaultyServer) -> Iterator[FaultyServer]:
    server.answer = one_logit
    server.metadata["outputs"] = [{"name": "scores", "datatype": "FP32", "shape": [-1, 1]}]
    yield server
    server.answer = NET


@pytest.mark.parametrize("described", [True, False], ids=["described", "undescribed"])
@pytest.mark.parametrize("kind", ["logits", "probabilities", "rounded"])
def test_one_score_is_two_classes(one_score: FaultyServer, described: bool, kind: str) -> None:
    settled = {}
    if not described:
        one_score.metadata["outputs"] = []
        settled = {"settings": ModelSettings(num_classes=2)}
    if kind != "logits":
        one_score.answer = lambda images: one_logit(images).sigmoid()
    if kind == "rounded":
        one_score.answer = lambda images: (one_logit(images).sigmoid() * 100).round() / 100
    with ask_of(one_score, **settled) as box:
        assert box.num_classes == 2
        assert (ONE_SCORE in box.notes) == described  # else the first answer says it
        answers = box.ask(LIGHT_AND_DARK)
        assert box.notes == [ONE_SCORE]
        scale = box.scale
    assert scale is not None
    assert (scale.kind, scale.step) == (
        "logits" if kind == "logits" else "probabilities",
        0.01 if kind == "rounded" else None,
    )
    assert answers.argmax(1).tolist() == [0] * 6 + [1] * 6
    told = answers.softmax(1)[:, 1:]
    room = 0.006 if kind == "rounded" else 1e-5
    torch.testing.assert_close(told, one_logit(LIGHT_AND_DARK).sigmoid(), rtol=0, atol=room)
    with ask_of_labels(one_score, **settled) as box:
        assert box.ask(LIGHT_AND_DARK).tolist() == [0] * 6 + [1] * 6


def ask_of_labels(server: FaultyServer, **options: Any) -> ServedBlackBox:
    settled = BlackBoxOptions(**options, transport=TransportSettings(**QUICK))
    return ServedBlackBox(server.url, name="defended", feedback="labels", options=settled)


@pytest.mark.parametrize("feedback", ["scores", "labels"])
def test_one_score_that_looked_like_a_probability_at_first(
    one_score: FaultyServer, feedback: str
) -> None:
    # A logit of .35, which is of class 1; a probability of .35 would be of class 0.
    ask = ask_of if feedback == "scores" else ask_of_labels
    with ask(one_score) as box:
        box.ask(LIGHT_AND_DARK[6:7])
        with pytest.raises(ModelError, match="declare outputs='logits'"):
            box.ask(LIGHT_AND_DARK)
    declared = ModelSettings(outputs="logits")
    with ask(one_score, settings=declared) as box:
        answers = box.ask(LIGHT_AND_DARK[6:7])
        assert (answers if answers.ndim == 1 else answers.argmax(1)).tolist() == [1]


def test_one_score_of_other_class_counts_is_refused(one_score: FaultyServer) -> None:
    with pytest.raises(ModelError, match="expected 10 classes"):
        ask_of(one_score, settings=ModelSettings(num_classes=10))
    one_score.metadata["outputs"] = []
    with (
        ask_of(one_score, settings=ModelSettings(num_classes=10)) as box,
        pytest.raises(ModelError, match=r"expected scores \(4, 10\)"),
    ):
        box.ask(LIGHT_AND_DARK)


def test_answers_that_change_their_form_are_refused(one_score: FaultyServer) -> None:
    one_score.metadata["outputs"] = []
    one_score.faults = [faulty.lie(shape=[4, 2], data=[0.5] * 8)]
    settled = ModelSettings(num_classes=2)
    with (
        ask_of(one_score, settings=settled) as box,
        pytest.raises(ModelError, match=r"answers of one form, got \(n, 1\) and \(n, 2\)"),
    ):
        box.ask(LIGHT_AND_DARK)
