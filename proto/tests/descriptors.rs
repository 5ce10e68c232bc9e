//! Our `.proto` text against the descriptors compiled into the upstream Go modules, field by field.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use serde_json::{Value, json};

/// Files of ours and their packages.
const CONTRACTS: [(&str, &str); 3] =
    [("cri.proto", "runtime.v1"), ("csi.proto", "csi.v1"), ("pluginregistration.proto", "pluginregistration")];

#[test]
fn our_text_says_what_the_go_modules_say() {
    let upstream = upstream();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let ours =
        protox::compile(CONTRACTS.map(|(file, _)| folder.join(file)), [&folder]).expect("our .proto text compiles");
    let mut wrong = Vec::new();
    for (file, package) in CONTRACTS {
        let file = ours.file.iter().find(|known| known.name() == file).expect("the file was compiled");
        compare(package, &flatten(file), &upstream[package], &mut wrong);
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// What the upstream modules say, printed by the Go program beside the conformance tests.
fn upstream() -> Value {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance/proto");
    let output = Command::new("go")
        .args(["run", "-buildvcs=false", "."])
        .current_dir(&folder)
        .output()
        .expect("this test needs Go 1.26 or newer on the PATH: install it from go.dev/dl");
    assert!(output.status.success(), "go run in {}: {}", folder.display(), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the Go program prints JSON")
}

/// Tells every entry that only one side has or that differs.
fn compare(package: &str, ours: &Value, theirs: &Value, wrong: &mut Vec<String>) {
    for part in ["messages", "enums", "methods"] {
        let (ours, theirs) = (ours[part].as_object().unwrap(), theirs[part].as_object().unwrap());
        assert!(package == "pluginregistration" || !theirs.is_empty(), "{package} has {part}");
        for (name, expected) in theirs {
            match ours.get(name) {
                None => wrong.push(format!("{package}: {part}: {name} is missing")),
                Some(found) if found != expected => {
                    wrong.push(format!("{package}: {name}: ours {found}, upstream {expected}"))
                }
                Some(_) => {}
            }
        }
        wrong.extend(
            ours.keys()
                .filter(|name| !theirs.contains_key(*name))
                .map(|name| format!("{package}: {part}: {name} is ours alone")),
        );
    }
}

/// A file in the form that the Go program prints.
fn flatten(file: &FileDescriptorProto) -> Value {
    let package = file.package().to_string();
    let (mut messages, mut enums, mut methods) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for message in &file.message_type {
        flatten_message(&package, message, &mut messages, &mut enums);
    }
    for kind in &file.enum_type {
        enums.insert(format!("{package}.{}", kind.name()), values(kind));
    }
    for service in &file.service {
        for method in &service.method {
            let stream = |is: bool| if is { "stream " } else { "" };
            let signature = format!(
                "({}{}) ({}{})",
                stream(method.client_streaming()),
                method.input_type().trim_start_matches('.'),
                stream(method.server_streaming()),
                method.output_type().trim_start_matches('.')
            );
            methods.insert(format!("{package}.{}.{}", service.name(), method.name()), json!(signature));
        }
    }
    json!({"messages": messages, "enums": enums, "methods": methods})
}

fn flatten_message(
    scope: &str,
    message: &DescriptorProto,
    messages: &mut BTreeMap<String, Value>,
    enums: &mut BTreeMap<String, Value>,
) {
    let name = format!("{scope}.{}", message.name());
    let fields: Vec<Value> = message.field.iter().map(|field| flatten_field(&name, message, field)).collect();
    for nested in &message.nested_type {
        flatten_message(&name, nested, messages, enums);
    }
    for kind in &message.enum_type {
        enums.insert(format!("{name}.{}", kind.name()), values(kind));
    }
    messages.insert(name, json!(fields));
}

fn flatten_field(message_name: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> Value {
    let repeated = field.label() == Label::Repeated;
    let entry = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry)
            && field.type_name() == format!(".{message_name}.{}", nested.name())
    });
    let (kind, type_name) = match entry {
        Some(entry) => ("map".into(), format!("{},{}", kind_of(&entry.field[0]), type_of(&entry.field[1]))),
        None if field.type_name.is_some() => (kind_of(field), type_of(field)),
        None => (kind_of(field), String::new()),
    };
    let oneof = match field.oneof_index {
        Some(index) if !field.proto3_optional() => message.oneof_decl[index as usize].name().to_string(),
        _ => String::new(),
    };
    json!({
        "name": field.name(), "number": field.number(), "kind": kind, "type": type_name,
        "repeated": repeated && entry.is_none(), "oneof": oneof
    })
}

fn kind_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message => "message".into(),
        Type::Enum => "enum".into(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match &field.type_name {
        Some(name) => name.trim_start_matches('.').to_string(),
        None => kind_of(field),
    }
}

fn values(kind: &EnumDescriptorProto) -> Value {
    kind.value
        .iter()
        .map(|value| (value.name().to_string(), json!(value.number())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
