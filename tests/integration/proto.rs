//! `proto/cri.proto` says what `proto/cri-api.json` says: the facts of the CRI API, no more, no fewer.
//!
//! The proto is written by hand from the facts, so each is held against the other, in both directions.

use std::collections::{BTreeMap, BTreeSet};

use crimux::method::{self, Kind, Route};
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use serde_json::Value;

/// Named facts, each as one line of text.
type Facts = BTreeMap<String, String>;

fn described() -> FileDescriptorProto {
    let mut set = prost_types::FileDescriptorSet::decode(crimux::cri::DESCRIPTOR).expect("a descriptor set");
    assert_eq!(set.file.len(), 1);
    set.file.remove(0)
}

fn facts() -> Value {
    serde_json::from_str(include_str!("../../proto/cri-api.json")).expect("cri-api.json is JSON")
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().expect("an object").iter()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn last_segment(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Returns the type of a field as the facts write it.
fn type_of(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum => last_segment(field.type_name()).to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    let entries = message.nested_type.iter();
    if let Some(entry) =
        entries.filter(|nested| nested.options.is_some()).find(|nested| nested.name() == name)
    {
        return format!("map<{},{}>", type_of(entry, &entry.field[0]), type_of(entry, &entry.field[1]));
    }
    if field.label() == Label::Repeated { format!("repeated {name}") } else { name }
}

fn enum_facts<'a>(prefix: &str, enums: &'a [EnumDescriptorProto]) -> impl Iterator<Item = (String, String)> {
    let values = enums.iter().flat_map(move |described| {
        let value = |value: &'a prost_types::EnumValueDescriptorProto| {
            (format!("{prefix}{}.{}", described.name(), value.name()), value.number().to_string())
        };
        described.value.iter().map(value).collect::<Vec<_>>()
    });
    values.collect::<Vec<_>>().into_iter()
}

#[test]
fn every_rpc_is_the_one_of_the_facts() {
    let mut proto = Facts::new();
    for service in described().service {
        for rpc in &service.method {
            let types = [rpc.input_type(), rpc.output_type()].map(last_segment).join(" ");
            assert!(!rpc.client_streaming(), "{}", rpc.name());
            let name = format!("{}.{}", service.name(), rpc.name());
            proto.insert(name, format!("{types} {}", rpc.server_streaming()));
        }
    }
    let mut expected = Facts::new();
    for (service, rpcs) in object(&facts()["services"]) {
        for (name, rpc) in object(rpcs) {
            let types = format!("{} {}", text(&rpc["request"]), text(&rpc["response"]));
            expected.insert(format!("{service}.{name}"), format!("{types} {}", rpc["server_streaming"]));
        }
    }
    assert_eq!(proto, expected);
    assert_eq!(expected.len(), 43);
}

#[test]
fn every_field_is_the_one_of_the_facts() {
    let mut proto = Facts::new();
    let mut messages = BTreeSet::new();
    for message in described().message_type {
        messages.insert(message.name().to_owned());
        for field in &message.field {
            let name = format!("{}.{}", message.name(), field.name());
            proto.insert(name, format!("{} {}", field.number(), type_of(&message, field)));
        }
    }
    let mut expected = Facts::new();
    let mut named = BTreeSet::new();
    for (message, fields) in object(&facts()["messages"]) {
        named.insert(message.clone());
        for field in fields.as_array().expect("a list of fields") {
            let name = format!("{message}.{}", text(&field["name"]));
            expected.insert(name, format!("{} {}", field["number"], text(&field["type"])));
        }
    }
    assert_eq!(messages, named);
    assert_eq!(proto, expected);
    assert_eq!(named.len(), 175);
}

#[test]
fn every_enum_value_is_the_one_of_the_facts() {
    let file = described();
    let mut proto: Facts = enum_facts("", &file.enum_type).collect();
    for message in &file.message_type {
        proto.extend(enum_facts(&format!("{}.", message.name()), &message.enum_type));
    }
    let mut expected = Facts::new();
    for (name, values) in object(&facts()["enums"]) {
        expected
            .extend(object(values).map(|(value, number)| (format!("{name}.{value}"), number.to_string())));
    }
    assert_eq!(proto, expected);
    assert_eq!(file.package(), facts()["package"]);
}

/// Returns what the comments of the proto say of the age of each RPC and field; 0.20 where they say nothing.
fn ages() -> Facts {
    let mut ages = Facts::new();
    let mut scope = Vec::new();
    let mut comment = "";
    for line in include_str!("../../proto/cri.proto").lines() {
        let mut words = line.split_whitespace();
        match (words.next(), line.split_once(" = ")) {
            (Some("message" | "enum" | "service"), _) if line.ends_with('{') => {
                scope.push(words.next().expect("a name follows"));
            }
            (Some("}"), _) => drop(scope.pop()),
            (Some("rpc"), _) => {
                let name = words.next().and_then(|rest| rest.split('(').next()).expect("a name follows");
                let (_, age) = comment.rsplit_once("Since ").expect("the line before names the age");
                ages.insert(format!("{}.{name}", scope[0]), age.trim_end_matches('.').to_owned());
            }
            (Some(first), Some((before, _))) if first != "//" && !scope.is_empty() => {
                let name = before.rsplit(' ').next().expect("a field has a name");
                let age = line.rsplit_once("// since ").map_or("0.20", |(_, age)| age);
                ages.insert(format!("{}.{name}", scope[scope.len() - 1]), age.to_owned());
            }
            _ => {}
        }
        comment = line;
    }
    ages
}

#[test]
fn comments_name_the_age_that_the_facts_name() {
    let (ages, facts) = (ages(), facts());
    let mut expected = Facts::new();
    for (service, rpcs) in object(&facts["services"]) {
        for (name, rpc) in object(rpcs) {
            expected.insert(format!("{service}.{name}"), text(&rpc["since"]).to_owned());
        }
    }
    for (message, fields) in object(&facts["messages"]) {
        for field in fields.as_array().expect("a list of fields") {
            let name = format!("{message}.{}", text(&field["name"]));
            expected.insert(name, text(&field["since"]).to_owned());
        }
    }
    for (name, age) in expected {
        assert_eq!(ages.get(&name), Some(&age), "{name}");
    }
}

#[test]
fn everything_in_the_proto_has_a_comment() {
    let mut before = "";
    let mut counted = 0;
    for line in include_str!("../../proto/cri.proto").lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if ["service", "rpc", "message", "enum"].contains(&first) {
            assert!(before.trim_start().starts_with("// "), "{line}");
            counted += 1;
        }
        before = line;
    }
    assert_eq!(counted, 2 + 43 + 175 + 11);
}

#[test]
fn the_field_that_decides_the_way_is_a_string_of_that_meaning() {
    let facts = facts();
    for row in method::all() {
        let (number, meanings): (u32, &[&str]) = match row.route {
            Route::Handler(field) => (field, &["runtime_handler"]),
            Route::Owner(Kind::Sandbox, _) => (1, &["pod_sandbox_id"]),
            Route::Owner(Kind::Container, _) => (1, &["container_id"]),
            _ => continue,
        };
        let request = text(&facts["services"]["RuntimeService"][row.name]["request"]);
        let fields = facts["messages"][request].as_array().expect("a list of fields");
        let field = fields.iter().find(|field| field["number"] == number).expect("the field exists");
        assert!(meanings.contains(&text(&field["name"])), "{}: {field}", row.name);
        assert_eq!(text(&field["type"]), "string", "{}", row.name);
    }
}
