"""One subscription of MQTT 5 over paho, without a thread: it reads when it is asked to.

What is not asked for stays in the socket, so that a slow store slows the broker down and nothing is
dropped between the two.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from clients.agent.intake.acks import IN_FLIGHT
from clients.agent.intake.broker import Broker, BrokerError
from fleet.errors import InputError

__all__ = ["Lost", "Message", "Subscription"]

ANSWER_S = 10.0
"""How long the broker may take to let a connection in, and how long a farewell may take."""
KEEPALIVE_S = 30
SESSION_EXPIRY_S = 30 * 86_400  # a device that was away for longer begins anew
READ_AT_ONCE = 64
AHEAD_BYTES = 1 << 24  # read while a confirmation is waited for
STEP_S = 0.1
QOS = 1
TAKEN_OVER = 0x8E
# Malformed, protocol, version, client id, password, permission, banned, method: asking again is
# answered alike.
REFUSALS = {0x81, 0x82, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C}


class Lost(Exception):
    """The connection ended or did not come about; it may on another attempt."""


@dataclass(frozen=True)
class Message:
    """What the broker delivered.

    Attributes:
        number: To acknowledge it by; None where it wants none (QoS 0).
        topic: Where it was published.
        payload: Its content.
    """

    number: int | None
    topic: str
    payload: bytes


class Subscription:
    """A subscription at QoS 1 that the broker keeps while nobody is there.

    Args:
        broker: Where.
        topic: The filter.
        client_id: The session's name.
        clock: Seconds that only go forward.

    Raises:
        InputError: ``ca-unreadable``.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        client_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker, self._topic, self._clock = broker, topic, clock
        self._inbox: list[Message] = []
        self._ahead = 0  # bytes in it
        self._refused: BrokerError | None = None
        self._reason = ""
        self._subscribed = self._kept = False
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        self._client.connect_timeout = ANSWER_S
        # What a broker retained is an old sample; a sensor's live ones come all the same.
        self._options = SubscribeOptions(
            qos=QOS, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
        )
        if broker.user:
            self._client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            self._client.tls_set_context(_context(broker))
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_disconnect = self._on_disconnect

    def open(self) -> bool:
        """Connect and subscribe; a second time for a connection that was lost.

        Returns:
            Whether the broker had kept the session, and with it what came in between.

        Raises:
            Lost: Not now.
            BrokerError: ``broker-untrusted``, ``broker-refused`` or ``topic-refused``.
        """
        self._inbox, self._ahead = [], 0
        self._subscribed, self._reason = False, ""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = IN_FLIGHT
        try:
            self._client.connect(
                self._broker.host,
                self._broker.port,
                keepalive=KEEPALIVE_S,
                clean_start=False,
                properties=properties,
            )
        except ssl.SSLCertVerificationError as error:
            raise BrokerError(
                "broker-untrusted",
                f"the certificate of {self._broker} is not trusted: {error.verify_message}",
                "Name the PEM file of the root that signed it: --tls-ca FILE",
            ) from error
        except OSError as error:
            raise Lost(str(error)) from error
        # A session that was kept is subscribed already; what it repeats comes before the answer.
        self._await_answer(or_message=True)
        return self._kept

    def confirm(self) -> None:
        """Return when the broker has heard all acknowledgements so far.

        It handles a connection's packets in their order, so its answer to one more subscription
        comes after that. What it sends in between waits for :meth:`poll`.

        Raises:
            Lost: Also when more than ``AHEAD_BYTES`` came before the answer.
            BrokerError: See :meth:`open`.
        """
        self._subscribed = False
        self._client.subscribe(self._topic, options=self._options)
        self._await_answer()

    def _await_answer(self, *, or_message: bool = False) -> None:
        deadline_s = self._clock() + ANSWER_S
        while not (self._subscribed or (or_message and self._inbox)):
            self._step(STEP_S)
            if self._clock() > deadline_s:
                raise Lost(f"it did not answer within {ANSWER_S:g} s")
            if self._ahead > AHEAD_BYTES:
                raise Lost(f"it sent more than {AHEAD_BYTES} bytes before its answer")

    def poll(self, wait_s: float) -> list[Message]:
        """Return what came, at most a few dozen; wait for the first one.

        Raises:
            Lost: The connection ended, and all that came before was returned.
            BrokerError: ``broker-taken-over``.
        """
        before = -1
        try:
            while before < len(self._inbox) < READ_AT_ONCE:
                before = len(self._inbox)
                self._step(0.0 if before else wait_s)
        except Lost:
            if not self._inbox:
                raise
        messages, self._inbox = self._inbox[:READ_AT_ONCE], self._inbox[READ_AT_ONCE:]
        self._ahead -= sum(len(message.payload) for message in messages)
        return messages

    def ack(self, numbers: tuple[int, ...]) -> None:
        """Acknowledge; on a connection that was just lost the broker sends them again."""
        for number in numbers:
            self._client.ack(number, QOS)

    def close(self) -> None:
        """Send what is left to send and leave; the broker keeps the session."""
        if not self._client.is_connected():
            return
        self._client.disconnect()
        deadline_s = self._clock() + ANSWER_S
        while self._client.socket() is not None and self._clock() < deadline_s:
            if self._client.loop(STEP_S) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return

    def _step(self, wait_s: float) -> None:
        outcome = self._client.loop(wait_s)
        if self._refused is not None:
            raise self._refused
        if outcome != MQTTErrorCode.MQTT_ERR_SUCCESS or self._client.socket() is None:
            raise Lost(self._reason or "the connection was lost")

    def _on_connect(
        self, client: Client, _data: Any, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.value in REFUSALS:
            self._refused = BrokerError(
                "broker-refused",
                f"{self._broker} refused the connection: {reason}",
                "User and password go into a file: --credentials FILE. It must speak MQTT 5.",
            )
        if reason.is_failure:
            self._reason = str(reason)
            return
        self._kept = bool(flags.session_present)
        client.subscribe(self._topic, options=self._options)

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        self._subscribed = not reasons[0].is_failure and reasons[0].value >= QOS
        if not self._subscribed:
            self._refused = BrokerError(
                "topic-refused",
                f"{self._broker} does not deliver {self._topic!r} at QoS {QOS}: {reasons[0]}",
                "May this user read the topic?",
            )

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # MQTT forbids it, but it must not end the intake for ever
            topic = ""
        number = message.mid if message.qos else None
        self._inbox.append(Message(number, topic, bytes(message.payload)))
        self._ahead += len(message.payload)

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        self._reason = self._reason or str(reason)
        if reason.value == TAKEN_OVER:
            self._refused = BrokerError(
                "broker-taken-over",
                f"another process of this device reads {self._topic!r} from {self._broker}",
                "End one of the two, or give them names of their own: --name",
            )


def _context(broker: Broker) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=broker.ca)
    except OSError as error:
        raise InputError("ca-unreadable", f"{broker.ca} holds no certificate: {error}") from error
