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
        ("{{a}}{{b}}", json!("x".repeat(300_000)), json!(1), "the variables: more than 262144 bytes; shorten"),
        (
            "{{#each a}}{{@root.b}}{{/each}}{{a}}",
            json!(vec![1; 500]),
            json!("x".repeat(4000)),
            "html.hbs: more than 1048576 bytes",
        ),
        (loops, json!(vec![1; 1000]), json!(1), "html.hbs:1: the variables make it repeat too much"),
        (prints, json!(vec![1; 500]), json!("x".repeat(2000)), "html.hbs:1: the variables make it repeat too much"),
        (&"{{b}}".repeat(2000), json!(1), json!("x".repeat(50_000)), "what html.hbs prints: more than"),
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
    assert_eq!(error.to_string(), "subject.hbs: more than 998 bytes; shorten what the variables hold");
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

#[test]
fn a_mail_is_in_one_language() {
    let source: TemplateSource = serde_json::from_value(json!({
        "key": "k", "manifest_toml": MANIFEST, "subject": "Bonjour {{a}}", "html": "{{postrider.locale}} {{> box label=b}}",
        "text": "{{money b}}, {{datetime c}}", "partials_html": {"box": "{{label}} fr"},
        "variants": {
            "en": {
                "subject": "Hello {{a}}", "html": "{{postrider.locale}} {{> box label=b}}", "text": "{{money b}}, {{datetime c}}",
                "partials_html": {"box": "{{label}} en"}
            },
            "pt-BR": {
                "subject": "Olá {{a}}", "html": "\n{{url b}}{{> box label=b}}", "text": "{{money b}}, {{datetime c}}",
                "partials_html": {"box": "{{label}} fr"}
            }
        }
    }))
    .expect("a source");
    let template = CompiledTemplate::compile(&source, 7, 3).unwrap_or_else(|faults| panic!("{faults:?}"));
    assert_eq!(template.locales().collect::<Vec<_>>(), ["fr", "en", "pt-BR"]);
    let variables = json!({"a": "Ada", "b": 1_234_567, "c": "2026-02-21T14:30:00Z"});
    let french =
        ["Bonjour Ada", "fr 1234567 fr", "1\u{202F}234\u{202F}567\u{A0}FCFA, 21 février 2026 à\u{A0}15\u{A0}h\u{A0}30"];
    let english = ["Hello Ada", "en 1234567 en", "1,234,567\u{A0}FCFA, 21 February 2026 at\u{A0}15:30"];
    for (asked, want) in
        [("fr", french), ("fr-BJ", french), ("de", french), ("", french), ("en", english), ("en-GB", english)]
    {
        let system = System { locale: asked, ..system() };
        let mail = template.render(variables.as_object().expect("an object"), &system).expect("a mail");
        assert_eq!([mail.subject, mail.html, mail.text], want, "{asked}");
    }
    let system = System { locale: "pt-br", ..system() };
    let error = template.render(variables.as_object().expect("an object"), &system).expect_err("no address");
    assert_eq!(error, RenderError::NotAUrl { part: "html.pt-BR.hbs".into(), line: Some(2) });
}

#[test]
fn faults_of_a_variant_name_its_files() {
    let with = |variants: Value| {
        let source: TemplateSource = serde_json::from_value(json!({
            "key": "k", "manifest_toml": MANIFEST, "subject": "{{a}}", "html": "{{b}}{{> p}}", "text": "{{c}}",
            "partials_html": {"p": "p"}, "variants": variants
        }))
        .expect("a source");
        let faults = CompiledTemplate::compile(&source, 7, 3).err().unwrap_or_default();
        faults.iter().map(|fault| format!("{fault}\n")).collect::<String>()
    };
    let variant = |html: &str, partial: &str| json!({"subject": "s", "html": html, "text": "t", "partials_html": {"p": partial, "q": "{{x}}"}});
    assert_eq!(with(json!({"en": variant("h", "p"), "fr-BJ": variant("h", "p")})), "");
    let found = with(json!({"en": variant("\n{{nobody}}", "p")}));
    assert_eq!(found, "html.en.hbs:2: variable \"nobody\" is not declared in manifest.toml\n");
    let found = with(json!({"en": variant("{{> q}}{{> p}}", "p")}));
    assert_eq!(found, "_shared/html/q.en.hbs:1: variable \"x\" is not declared in manifest.toml\n");
    assert!(with(json!({"fr": variant("h", "p")})).contains("html.fr.hbs: there are two variants for fr"));
    assert!(
        with(json!({"en": variant("h", "p"), "EN": variant("h", "p")})).contains("html.EN.hbs: what stands before")
    );
    assert!(with(json!({"en-gb": variant("h", "p"), "en-GB": variant("h", "p")})).contains("two variants for en-gb"));
    let many: Map<String, Value> = (0..21).map(|n| (format!("x{}", char::from(b'a' + n)), variant("h", "p"))).collect();
    assert!(with(Value::Object(many)).contains("at most 20 are allowed"));
}

#[test]
fn lines_of_errors_are_those_that_were_written() {
    let html = "<style>\np { color: red }\n</style>\n\n\n<p>{{url a}}</p>";
    let source: TemplateSource = serde_json::from_value(json!({
        "key": "k", "manifest_toml": MANIFEST, "subject": "s", "html": html, "text": "{{b}}{{c}}",
        "sample": {"a": "https://a.bj", "b": "b", "c": "c"}
    }))
    .expect("a source");
    let template = CompiledTemplate::compile(&source, 7, 3).unwrap_or_else(|faults| panic!("{faults:?}"));
    let sent = template.render(&source.sample, &system()).expect("a mail").html;
    assert!(sent.ends_with("<p style=\"color:red\">https://a.bj</p>"), "{sent}");
    let error = render(&template, &json!({"a": "none", "b": "b"})).expect_err("no address");
    assert_eq!(error, RenderError::NotAUrl { part: "html.hbs".into(), line: Some(6) });
}
