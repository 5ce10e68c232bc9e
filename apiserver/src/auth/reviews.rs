//! Questions about who somebody is and what somebody may do.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::authorize::{Attributes, Decision, authorize};
use super::{AUTHENTICATED, MASTERS, User};
use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::object;
use crate::registry::Resource;

/// Answers a review.
///
/// # Errors
/// 422 for a question that names nobody or nothing, 400 for another namespace.
pub fn review(
    api: &Api,
    user: &User,
    resource: &Resource,
    namespace: &str,
    mut question: Value,
) -> Result<Value, ApiError> {
    let status = match resource.kind {
        "TokenReview" => token_status(api, &question)?,
        "SelfSubjectReview" => json!({"userInfo": user.info()}),
        "SelfSubjectAccessReview" => access_status(api, user, &attributes(resource, &question)?),
        "SubjectAccessReview" => access_status(api, &subject(resource, &question)?, &attributes(resource, &question)?),
        "LocalSubjectAccessReview" => {
            let asked = attributes(resource, &question)?;
            if asked.namespace != namespace {
                let error = FieldError::invalid(
                    "spec.resourceAttributes.namespace",
                    asked.namespace,
                    "must match metadata.namespace",
                );
                return Err(invalid(resource, error));
            }
            access_status(api, &subject(resource, &question)?, &asked)
        }
        "SelfSubjectRulesReview" if object::text(&question, "/spec/namespace").is_empty() => {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        "SelfSubjectRulesReview" => rules_status(user),
        other => return Err(ApiError::internal(format!("{other} is no review"))),
    };
    let metadata = object::metadata(&mut question);
    match resource.kind {
        "SelfSubjectReview" => {
            metadata.insert("creationTimestamp".into(), json!(object::now()));
        }
        "SelfSubjectRulesReview" => question["spec"] = json!({}),
        _ => {}
    }
    question["status"] = status;
    Ok(question)
}

fn token_status(api: &Api, question: &Value) -> Result<Value, ApiError> {
    let token = object::text(question, "/spec/token");
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = object::strings(question, "/spec/audiences").into_iter().map(String::from).collect();
    Ok(match api.tokens.check(api, token, &audiences) {
        Ok(checked) => json!({"authenticated": true, "user": checked.user.info(), "audiences": checked.audiences}),
        Err(reason) => json!({"user": {}, "error": format!("invalid bearer token: {reason}")}),
    })
}

fn access_status(api: &Api, user: &User, asked: &Attributes) -> Value {
    match authorize(api, user, asked) {
        Decision::Allowed => json!({"allowed": true}),
        Decision::Denied(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::Denied(reason) => json!({"allowed": false, "reason": reason}),
    }
}

/// 422 as kube-apiserver words it for reviews: without the kind.
fn invalid(resource: &Resource, error: FieldError) -> ApiError {
    ApiError::invalid_kind(&format!(".{}", resource.group), resource.group, "", "", &[error])
}

fn subject(resource: &Resource, question: &Value) -> Result<User, ApiError> {
    let name = object::text(question, "/spec/user");
    let groups: Vec<String> = object::strings(question, "/spec/groups").into_iter().map(String::from).collect();
    if name.is_empty() && groups.is_empty() {
        let error = FieldError::invalid("spec.user", "", "at least one of user or group must be specified");
        return Err(invalid(resource, error));
    }
    let extra: BTreeMap<String, Vec<String>> = question
        .pointer("/spec/extra")
        .and_then(|extra| serde_json::from_value(extra.clone()).ok())
        .unwrap_or_default();
    Ok(User { name: name.into(), uid: object::text(question, "/spec/uid").into(), groups, extra })
}

fn attributes(resource: &Resource, question: &Value) -> Result<Attributes, ApiError> {
    let about_resource = question.pointer("/spec/resourceAttributes");
    let about_page = question.pointer("/spec/nonResourceAttributes");
    match (about_resource, about_page) {
        (Some(_), Some(page)) => {
            let shown = json!({"Path": object::text(page, "/path"), "Verb": object::text(page, "/verb")});
            let why = "cannot be specified in combination with resourceAttributes";
            Err(invalid(resource, FieldError::invalid("spec.nonResourceAttributes", shown, why)))
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            Err(invalid(resource, FieldError::invalid("spec.resourceAttributes", Value::Null, why)))
        }
        (None, Some(page)) => Ok(Attributes {
            verb: object::text(page, "/verb").into(),
            path: object::text(page, "/path").into(),
            ..Attributes::default()
        }),
        (Some(asked), None) => {
            let text = |pointer: &str| object::text(asked, pointer).to_string();
            let requirements = object::items(asked, "/fieldSelector/requirements").iter();
            let required_fields = requirements
                .filter(|requirement| object::text(requirement, "/operator") == "In")
                .filter_map(|requirement| match object::strings(requirement, "/values")[..] {
                    [value] => Some((object::text(requirement, "/key").to_string(), value.to_string())),
                    _ => None,
                })
                .collect();
            Ok(Attributes {
                verb: text("/verb"),
                group: text("/group"),
                // An empty resource would be taken for a page.
                resource: Some(text("/resource")).filter(|name| !name.is_empty()).unwrap_or_else(|| "*".into()),
                subresource: text("/subresource"),
                namespace: text("/namespace"),
                name: text("/name"),
                path: String::new(),
                required_fields,
            })
        }
    }
}

fn rules_status(user: &User) -> Value {
    let mut resources = Vec::new();
    let mut pages = Vec::new();
    if user.is_in(MASTERS) {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        pages.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    if user.is_in(AUTHENTICATED) {
        resources.push(json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]}));
        resources.push(
            json!({"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]}),
        );
        pages.push(json!({"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"]}));
    }
    // What a node may do depends on its pods and can't be listed.
    json!({"resourceRules": resources, "nonResourceRules": pages, "incomplete": user.node().is_some()})
}
