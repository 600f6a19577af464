from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Answer(_message.Message):
    __slots__ = ("data", "content")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    data: str
    content: bytes
    def __init__(self, data: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after", "limit_s")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    after: int
    limit_s: float
    def __init__(self, after: _Optional[int] = ..., limit_s: _Optional[float] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("seq", "at", "actor", "verb", "subject", "detail")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    seq: int
    at: str
    actor: str
    verb: str
    subject: str
    detail: str
    def __init__(self, seq: _Optional[int] = ..., at: _Optional[str] = ..., actor: _Optional[str] = ..., verb: _Optional[str] = ..., subject: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class DeviceListRequest(_message.Message):
    __slots__ = ("tag", "state", "revoked")
    TAG_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    tag: str
    state: str
    revoked: bool
    def __init__(self, tag: _Optional[str] = ..., state: _Optional[str] = ..., revoked: bool = ...) -> None: ...

class DeviceShowRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class DeviceWhyRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class DeviceQuarantineRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "device")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    device: str
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class DeviceReadmitRequest(_message.Message):
    __slots__ = ("key", "device", "why")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    key: str
    device: str
    why: str
    def __init__(self, key: _Optional[str] = ..., device: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class DeviceEnrollRequest(_message.Message):
    __slots__ = ("key", "device", "public_key", "tags", "why")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    key: str
    device: str
    public_key: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    why: str
    def __init__(self, key: _Optional[str] = ..., device: _Optional[str] = ..., public_key: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., why: _Optional[str] = ...) -> None: ...

class DeviceRevokeRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "device")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    device: str
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class DeviceTagRequest(_message.Message):
    __slots__ = ("key", "device", "add", "remove")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    key: str
    device: str
    add: _containers.RepeatedScalarFieldContainer[str]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[str] = ..., device: _Optional[str] = ..., add: _Optional[_Iterable[str]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class RoundListRequest(_message.Message):
    __slots__ = ("newest",)
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    newest: int
    def __init__(self, newest: _Optional[int] = ...) -> None: ...

class RoundShowRequest(_message.Message):
    __slots__ = ("round", "attempt")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class RoundStartRequest(_message.Message):
    __slots__ = ("key", "why")
    KEY_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    key: str
    why: str
    def __init__(self, key: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class RoundAbortRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ...) -> None: ...

class RoundReplayRequest(_message.Message):
    __slots__ = ("round", "without", "rule")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    round: int
    without: _containers.RepeatedScalarFieldContainer[str]
    rule: str
    def __init__(self, round: _Optional[int] = ..., without: _Optional[_Iterable[str]] = ..., rule: _Optional[str] = ...) -> None: ...

class ReleaseListRequest(_message.Message):
    __slots__ = ("newest",)
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    newest: int
    def __init__(self, newest: _Optional[int] = ...) -> None: ...

class ReleaseShowRequest(_message.Message):
    __slots__ = ("release",)
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: int
    def __init__(self, release: _Optional[int] = ...) -> None: ...

class ReleaseDiffRequest(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: int
    second: int
    def __init__(self, first: _Optional[int] = ..., second: _Optional[int] = ...) -> None: ...

class ReleaseExportRequest(_message.Message):
    __slots__ = ("release",)
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: int
    def __init__(self, release: _Optional[int] = ...) -> None: ...

class ReleaseVerifyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleasePromoteRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "release")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    release: int
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., release: _Optional[int] = ...) -> None: ...

class ReleaseRebaseRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "base", "hold", "another_network", "method")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    ANOTHER_NETWORK_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    base: str
    hold: bool
    another_network: bool
    method: str
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., base: _Optional[str] = ..., hold: bool = ..., another_network: bool = ..., method: _Optional[str] = ...) -> None: ...

class ReleaseRollbackRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "release")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    release: int
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., release: _Optional[int] = ...) -> None: ...

class ReleasePinRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "release", "device", "tag")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    release: int
    device: str
    tag: str
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., release: _Optional[int] = ..., device: _Optional[str] = ..., tag: _Optional[str] = ...) -> None: ...

class ReleaseWithdrawRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "release")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    release: int
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., release: _Optional[int] = ...) -> None: ...

class BaseListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BaseInstallRequest(_message.Message):
    __slots__ = ("key", "content")
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    key: str
    content: bytes
    def __init__(self, key: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class PolicyShowRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PolicySetRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "policy")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    policy: str
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class AuditListRequest(_message.Message):
    __slots__ = ("subject", "before", "newest")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    subject: str
    before: int
    newest: int
    def __init__(self, subject: _Optional[str] = ..., before: _Optional[int] = ..., newest: _Optional[int] = ...) -> None: ...

class AuditVerifyRequest(_message.Message):
    __slots__ = ("seq", "hash")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    seq: int
    hash: str
    def __init__(self, seq: _Optional[int] = ..., hash: _Optional[str] = ...) -> None: ...

class RegistryBackupRequest(_message.Message):
    __slots__ = ("key", "name")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    key: str
    name: str
    def __init__(self, key: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class OperatorListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OperatorRevokeRequest(_message.Message):
    __slots__ = ("key", "dry_run", "why", "operator", "last_admin")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    LAST_ADMIN_FIELD_NUMBER: _ClassVar[int]
    key: str
    dry_run: bool
    why: str
    operator: str
    last_admin: bool
    def __init__(self, key: _Optional[str] = ..., dry_run: bool = ..., why: _Optional[str] = ..., operator: _Optional[str] = ..., last_admin: bool = ...) -> None: ...
