//! Renders that must work, and renders that must be stopped.

use super::*;
use crate::templates::TemplateSource;

const MANIFEST: &str = "description = \"x\"\ncategory = \"billing\"\npriority = \"P1\"\ndeadline_seconds = 60\n\
                        locale = \"fr\"\nrequired = [\"a\", \"b\"]\noptional = [\"c\"]";

fn template(subject: &str, html: &str, text: &str) -> CompiledTemplate {
    let source: TemplateSource = serde_json::from_value(json!({
        "key": "k", "manifest_toml": MANIFEST, "subject": subject, "html": html, "text": text,
        "partials_html": {"box": "<b title=\"{{label}}\">{{> @partial-block}}</b>"}
    }))
    .expect("a source");
    CompiledTemplate::compile(&source, 7, 3).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn system() -> System<'static> {
    System {
        request_date: DateTime::UNIX_EPOCH,
        attachments: &[AttachedFile { file_name: "<a>.pdf", content_type: "application/pdf" }],
        support_email: None,
        support_phone: Some("+229"),
        timezone: chrono_tz::Africa::PortoNovo,
        locale: "fr",
        unsubscribe_url: None,
    }
}

fn render(template: &CompiledTemplate, variables: &Value) -> Result<RenderedEmail, RenderError> {
    template.render(variables.as_object().expect("an object"), &system())
}

#[test]
fn html_is_escaped_and_the_rest_is_not() {
    let html = "<title>{{postrider.subject}}</title>{{a}}{{#> box label=b}}{{money b}}|{{default c \"d\"}}{{/box}}\
                {{#each postrider.attachments}}{{filename}}{{/each}}{{#if postrider.support_email}}x{{/if}}";
    let template = template("{{a}}", html, "{{postrider.subject}} {{b}} {{c}} {{date postrider.request_date}}");
    let mail = render(&template, &json!({"a": "<i>&\"é", "b": "<1>", "c": null, "undeclared": "x"})).expect("a mail");
    assert_eq!(mail.subject, "<i>&\"é");
    assert_eq!(
        mail.html,
        "<title>&lt;i&gt;&amp;&quot;é</title>&lt;i&gt;&amp;&quot;é\
         <b title=\"&lt;1&gt;\">&lt;1&gt;\u{A0}FCFA|d</b>&lt;a&gt;.pdf"
    );
    assert_eq!(mail.text, "<i>&\"é <1>  1er janvier 1970");
    assert_eq!(mail.template_version, 7);
}

#[test]
fn whole_numbers_print_as_integers() {
    let template = template("{{a}} {{b.x}} {{b.y.[0]}} {{c}}", "{{c}}", "x");
    let mail = render(&template, &json!({"a": 45.0, "b": {"x": 1e15, "y": [-0.0]}, "c": 1.5})).expect("a mail");
    assert_eq!(mail.subject, "45 1000000000000000 0 1.5");
}

#[test]
fn loops_know_where_they_are() {
    let text = "{{#each a as |item at|}}{{at}}{{@index}}{{@first}}{{@last}}{{item}}{{this}}{{../c}};{{/each}}\
                {{#each b}}{{@key}}={{this.x}},{{/each}}{{#each (lines c) as |l|}}{{l}}{{this}}{{../c}}{{/each}}\
                {{#each c}}x{{else}}none{{/each}}";
    let template = template("s", "x", text);
    let mail = render(&template, &json!({"a": ["u", "v"], "b": {"k": {"x": 1}, "l": {"x": 2}}, "c": "z"}));
    assert_eq!(mail.expect("a mail").text, "00truefalseuuz;11falsetruevvz;k=1,l=2,zzznone");
}

#[test]
fn a_subject_is_one_line_whatever_is_in_it() {
    let template = template("\n {{a}}  {{b}}\t{{c}}\n", "x", "x");
    let mail = render(&template, &json!({"a": "x\r\nBcc: y@z.bj", "b": "\u{85}\u{2028}\0", "c": "1\u{A0}000"}));
    assert_eq!(mail.expect("a mail").subject, "x Bcc: y@z.bj 1\u{A0}000");
    let error = render(&template, &json!({"a": " ", "b": "\n"})).expect_err("empty");
    assert_eq!(error.to_string(), "subject.hbs: the subject is empty");
}

#[test]
fn every_missing_variable_is_named() {
    let template = template("{{a}}", "{{b}}", "{{c}}");
    let error = render(&template, &json!({"b": null, "c": 1})).expect_err("missing");
    assert_eq!(error, RenderError::MissingVariable { names: vec!["a".into(), "b".into()] });
    assert_eq!(error.to_string(), "missing or null: a, b");
}

#[test]
fn errors_never_repeat_a_value() {
    let template = template("{{a}}", "x\n{{#if c}}{{url b}}{{/if}}\n{{#each a}}\n{{this.name}}{{/each}}", "{{c}}");
    let error = render(&template, &json!({"a": [], "b": "javascript:secret", "c": 1})).expect_err("no URL");
    assert_eq!(error, RenderError::NotAUrl { part: "html.hbs".into(), line: Some(2) });
    for (a, b) in [(json!(["secret"]), "https://x.bj"), (json!([["secret"]]), "https://x.bj"), (json!([[]]), "secret")]
    {
        let error = render(&template, &json!({"a": a, "b": b, "c": 1})).expect_err("a fault").to_string();
        assert!(error.starts_with("html.hbs:") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn size_depth_and_work_are_bounded() {
    let loops = "{{#each a}}{{#each ../a}}{{#each ../../a}}{{/each}}{{/each}}{{/each}}";
    let prints = "{{#> box label=1}}{{#each a}}{{#each ../a}}{{@root.b}}{{/each}}{{/each}}{{/box}}";
    for (html, a, b, want) in [
        ("{{a}}{{b}}", json!("x".repeat(300_000)), json!(1), "the variables is larger than 262144 bytes"),
        (
            "{{#each a}}{{@root.b}}{{/each}}{{a}}",
            json!(vec![1; 500]),
            json!("x".repeat(4000)),
            "html.hbs is larger than 1048576 bytes",
        ),
        (loops, json!(vec![1; 1000]), json!(1), "html.hbs:1: the variables make it repeat too much"),
        (prints, json!(vec![1; 500]), json!("x".repeat(2000)), "html.hbs:1: the variables make it repeat too much"),
        (&"{{b}}".repeat(2000), json!(1), json!("x".repeat(50_000)), "what html.hbs prints is larger than"),
    ] {
        let template = template("s", html, "{{a}}{{b}}{{c}}");
        let error = render(&template, &json!({"a": a, "b": b})).expect_err(want);
        assert!(error.to_string().starts_with(want), "{error}");
    }
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    let template = template("{{b}}", "{{a}}", "{{c}}");
    let error = render(&template, &json!({"a": deep, "b": 1})).expect_err("deep");
    assert_eq!(error, RenderError::TooDeep { name: "a".into() });
    let error = render(&template, &json!({"a": 1, "b": "x".repeat(999)})).expect_err("long");
    assert_eq!(error.to_string(), "subject.hbs is larger than 998 bytes");
}

#[test]
fn one_template_serves_many_threads() {
    let template = template("{{a}}", "{{#each b}}{{this}}{{/each}}", "{{c}}");
    std::thread::scope(|scope| {
        for n in 0..4 {
            let template = &template;
            scope.spawn(move || {
                for _ in 0..50 {
                    let mail = render(template, &json!({"a": n, "b": [n, n]})).expect("a mail");
                    assert_eq!((mail.subject, mail.html), (n.to_string(), format!("{n}{n}")));
                }
            });
        }
    });
}
