from __future__ import annotations

import re
from pathlib import Path

import clients.link
from clients.link import agent_pb2 as pb
from clients.link.transport import ANSWER, PING, SERVICE

FOLDER = Path(clients.link.__path__[0])
FIELD = re.compile(r"(?:(repeated) )?(map<\w+, \w+>|\w+) (\w+) = (\d+);")


def written() -> dict[str, set[tuple[str, str, int]]]:
    """The fields of every message as agent.proto has them: type, name, number."""
    text = re.sub(r"//.*", "", (FOLDER / "agent.proto").read_text(encoding="utf-8"))
    found = {}
    for block in re.split(r"^message ", text, flags=re.M)[1:]:
        found[block.split()[0]] = {
            (f"{many} {kind}".strip(), field, int(number))
            for many, kind, field, number in FIELD.findall(block)
        }
    return found


def generated() -> dict[str, set[tuple[str, str, int]]]:
    """The same of agent_pb2.py, by the definition that it holds."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    names = {number: name for name, number in FieldDescriptorProto.Type.items()}

    def kind(field: FieldDescriptorProto, nested: dict[str, str]) -> str:
        own = field.type_name.rsplit(".", 1)[-1] or names[field.type].removeprefix("TYPE_").lower()
        if own in nested:
            return nested[own]
        many = field.label == FieldDescriptorProto.LABEL_REPEATED
        return f"repeated {own}" if many else own

    found = {}
    for message in file.message_type:
        maps = {
            entry.name: f"map<{kind(entry.field[0], {})}, {kind(entry.field[1], {})}>"
            for entry in message.nested_type
        }
        found[message.name] = {(kind(f, maps), f.name, f.number) for f in message.field}
    return found


def test_the_generated_module_is_that_of_the_proto() -> None:
    assert len(written()) == 10
    assert written() == generated()  # run `make proto` after a change of agent.proto


def test_the_methods_are_those_of_the_proto() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == SERVICE
    assert {f"/{SERVICE}/{method.name}" for method in service.methods} == {ANSWER, PING}
    text = (FOLDER / "agent.proto").read_text(encoding="utf-8")
    calls = {m.name: (m.input_type.name, m.output_type.name) for m in service.methods}
    found = re.findall(r"rpc (\w+)\((\w+)\) returns \((\w+)\);", text)
    assert {name: (asked, told) for name, asked, told in found} == calls


def test_the_stubs_name_every_field() -> None:
    text = (FOLDER / "agent_pb2.pyi").read_text(encoding="utf-8")
    for message, fields in written().items():
        body = text.split(f"class {message}(", 1)[1].split("\nclass ", 1)[0]
        assert all(f"    {name}: " in body for _, name, _ in fields), message
