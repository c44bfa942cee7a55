//! Messages from JSON: a descriptor set says how they are encoded, and who sends how many of them.

use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::grpc::KindName;

/// A method's request as bytes, and what kind of method it is.
pub(crate) struct Described {
    pub(crate) message: Bytes,
    pub(crate) kind: KindName,
}

/// Encodes `json` as the request of the method at `path`, such as `/shop.Cart/Get`.
pub(crate) fn describe(file: &Path, path: &str, json: &str) -> anyhow::Result<Described> {
    let set = std::fs::read(file).with_context(|| format!("cannot read the descriptor set `{}`", file.display()))?;
    describe_in(&set, path, json).with_context(|| format!("with the descriptor set `{}`", file.display()))
}

fn describe_in(set: &[u8], path: &str, json: &str) -> anyhow::Result<Described> {
    let advice = "is no descriptor set; `protoc --include_imports --descriptor_set_out=FILE` writes one";
    let pool = DescriptorPool::decode(set).context(advice)?;
    let (service, method) = path.trim_start_matches('/').split_once('/').context("a method is SERVICE/METHOD")?;
    let Some(service) = pool.get_service_by_name(service) else {
        let names: Vec<_> = pool.services().map(|service| service.full_name().to_owned()).collect();
        bail!("there is no service `{service}`, but {}", names.join(", "));
    };
    let Some(method) = service.methods().find(|one| one.name() == method) else {
        let names: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
        bail!("`{}` has no method `{method}`, but {}", service.full_name(), names.join(", "));
    };
    let input = method.input();
    let mut reader = serde_json::Deserializer::from_str(json);
    let message = DynamicMessage::deserialize(input.clone(), &mut reader)
        .and_then(|message| reader.end().map(|()| message))
        .with_context(|| format!("the message is no {}", input.full_name()))?;
    let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => KindName::Unary,
        (false, true) => KindName::ServerStream,
        (true, false) => KindName::ClientStream,
        (true, true) => KindName::Bidi,
    };
    Ok(Described { message: message.encode_to_vec().into(), kind })
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost_types::field_descriptor_proto::Type;
    use prost_reflect::prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
        ServiceDescriptorProto,
    };

    use super::*;

    /// `message Item { string name = 1; int32 count = 2; }`, and a service with two methods that take it.
    fn set() -> Vec<u8> {
        let field = |name: &str, number, kind: Type| FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            r#type: Some(kind.into()),
            ..FieldDescriptorProto::default()
        };
        let method = |name: &str, streaming| MethodDescriptorProto {
            name: Some(name.into()),
            input_type: Some(".shop.Item".into()),
            output_type: Some(".shop.Item".into()),
            client_streaming: Some(streaming),
            server_streaming: Some(streaming),
            ..MethodDescriptorProto::default()
        };
        let file = FileDescriptorProto {
            name: Some("cart.proto".into()),
            package: Some("shop".into()),
            syntax: Some("proto3".into()),
            message_type: vec![DescriptorProto {
                name: Some("Item".into()),
                field: vec![field("name", 1, Type::String), field("count", 2, Type::Int32)],
                ..DescriptorProto::default()
            }],
            service: vec![ServiceDescriptorProto {
                name: Some("Cart".into()),
                method: vec![method("Add", false), method("Talk", true)],
                ..ServiceDescriptorProto::default()
            }],
            ..FileDescriptorProto::default()
        };
        FileDescriptorSet { file: vec![file] }.encode_to_vec()
    }

    #[test]
    fn json_becomes_the_bytes_that_the_descriptor_asks_for() {
        let item = r#"{"name": "hi", "count": 5}"#;
        let described = describe_in(&set(), "/shop.Cart/Add", item).expect("well described");
        assert_eq!(&described.message[..], b"\x0a\x02hi\x10\x05");
        assert!(matches!(described.kind, KindName::Unary));
        let described = describe_in(&set(), "/shop.Cart/Talk", "{}").expect("well described");
        assert_eq!(&described.message[..], b"");
        assert!(matches!(described.kind, KindName::Bidi));
    }

    #[test]
    fn what_does_not_fit_the_descriptor_is_said() {
        let check = |set: &[u8], path: &str, json: &str, part: &str| {
            let Err(error) = describe_in(set, path, json) else { panic!("{path} {json} is taken") };
            assert!(format!("{error:#}").contains(part), "{error:#}");
        };
        check(&set(), "/shop.Shop/Add", "{}", "no service `shop.Shop`, but shop.Cart");
        check(&set(), "/shop.Cart/Get", "{}", "no method `Get`, but Add, Talk");
        check(&set(), "/shop.Cart/Add", r#"{"nam": "hi"}"#, "is no shop.Item");
        check(&set(), "/shop.Cart/Add", r#"{"count": "many"}"#, "is no shop.Item");
        check(&set(), "/shop.Cart/Add", "{} {}", "is no shop.Item");
        check(b"\xff\xff", "/shop.Cart/Add", "{}", "is no descriptor set; `protoc");
    }
}
