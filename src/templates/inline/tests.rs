//! What is moved, what is not, and that it makes no difference to what is rendered.

use std::path::Path;

use chrono::DateTime;
use serde_json::{Map, Value, json};

use super::{
    scan::{Rules, rules},
    *,
};
use crate::templates::{
    AttachedFile, CompiledTemplate, System, TemplateSource, Variant, manifest::RESERVED, read_folder,
};

fn moved(html: &str, partials: &[(&str, &str)]) -> Result<Option<Inlined>, String> {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    let variant =
        Variant { html: html.to_owned(), partials_html: partials.iter().map(owned).collect(), ..Variant::default() };
    inline(&variant.words()).map_err(|fault| fault.to_string())
}

/// The part with its styles moved; it has no partials.
fn alone(html: &str) -> String {
    moved(html, &[]).unwrap_or_else(|fault| panic!("{html}: {fault}")).expect("there were rules").html
}

#[test]
fn rules_move_to_their_elements_and_nothing_else_changes() {
    for (html, want) in [
        ("<style>.a{color:red}</style><p class=\"a\">{{x}}</p>", "<p class=\"a\" style=\"color:red\">{{x}}</p>"),
        (
            "<style>p { color: red; margin: 0 }</style><table>{{#each xs}}<tr><td><p>{{this}}</td></tr>{{/each}}</table>",
            "<table>{{#each xs}}<tr><td><p style=\"color:red;margin:0\">{{this}}</td></tr>{{/each}}</table>",
        ),
        (
            "<style>td{color:red}</style><table>{{#each xs}}<tr><td>{{this}}</td></tr>{{else}}<tr><td>-</td></tr>{{/each}}</table>",
            "<table>{{#each xs}}<tr><td style=\"color:red\">{{this}}</td></tr>{{else}}<tr><td style=\"color:red\">-</td></tr>{{/each}}</table>",
        ),
        (
            "<style>p{color:red;margin:0}</style><p style=\"color:{{#if (eq a \"b\")}}#123456{{else}}blue{{/if}};padding:{{n}}%\">x</p>",
            "<p style=\"margin:0;color:{{#if (eq a \"b\")}}#123456{{else}}blue{{/if}};padding:{{n}}%\">x</p>",
        ),
        (
            "<style>.o .i{color:red}</style><div class='o'><b class='i'>x</b></div><b class='i'>y</b>",
            "<div class='o'><b class='i' style=\"color:red\">x</b></div><b class='i'>y</b>",
        ),
        (
            "<style>a{color:red}</style><a title=\"{{#if x}}>{{/if}}\" href=\"{{url x}}\">&nbsp;&eacute;</a>",
            "<a title=\"{{#if x}}>{{/if}}\" href=\"{{url x}}\" style=\"color:red\">&nbsp;&eacute;</a>",
        ),
        (
            "<style>td{font-family:\"Segoe UI\"}</style><!--[if mso]><table><tr><td><![endif]--><table><tr><td>x</td></tr></table>",
            "<!--[if mso]><table><tr><td><![endif]--><table><tr><td style=\"font-family:'Segoe UI'\">x</td></tr></table>",
        ),
    ] {
        let found = alone(html);
        let (_, body) = found.split_once("</style>").expect("a style block is left");
        assert_eq!(body.trim(), want, "{html}");
    }
}

#[test]
fn what_no_element_can_hold_stays() {
    let css = "p{color:red} p:hover{color:blue} a[x-y]{color:inherit}\n  @media (max-width: 480px) {\n    p { color: green !important } }";
    let found = alone(&format!("<style>{css}</style><p>x</p>"));
    for kept in ["p:hover", "a[x-y]", "@media (max-width: 480px)", "color: green !important"] {
        assert!(found.contains(kept), "{kept}: {found}");
    }
    let unused = alone("<style>.nobody{color:red} p{color:red}</style><p>x</p>");
    assert!(!unused.contains("nobody"), "no branch has it: {unused}");
    assert!(!found.contains("p{color:red}") && found.contains("<p style=\"color:red\">"), "{found}");
    let ignored = "<style data-css-inline=\"ignore\">p{color:red}</style><p>x</p>";
    assert!(moved(ignored, &[]).expect("sound").is_none(), "it says that it stays");
    assert!(moved("<style>@media print{p{color:red}}</style><p>x</p>", &[]).expect("sound").is_none());
    assert!(moved("<p>x</p>", &[]).expect("sound").is_none());
    assert!(
        alone("<style>p{color:red}</style><p>x</p>\n\n  <p>y</p><pre>a\n  b</pre>")
            .ends_with("</p>\n<p style=\"color:red\">y</p><pre>a\n  b</pre>")
    );
}

#[test]
fn partials_are_seen_where_they_are_included() {
    let page = "<style>.row td{color:red} h1{margin:0}</style><table class=\"row\">{{> row a=\"x\"}}{{#> box}}<h1>t</h1>{{/box}}{{> row a=\"y\"}}</table>";
    let found = moved(page, &[("row", "<tr><td>{{a}}</td></tr>"), ("box", "<tr><td>{{> @partial-block}}</td></tr>")]);
    let found = found.expect("sound").expect("rules");
    assert_eq!(found.partials["row"], "<tr><td style=\"color:red\">{{a}}</td></tr>");
    assert_eq!(found.partials["box"], "<tr><td style=\"color:red\">{{> @partial-block}}</td></tr>");
    assert!(found.html.contains("<h1 style=\"margin:0\">t</h1>"), "{}", found.html);
    let two = "<style>.a b{color:red}</style><p class=\"a\">{{> p}}</p><p>{{> p}}</p>";
    let fault = moved(two, &[("p", "\n<b>x</b>")]).expect_err("two styles");
    assert!(fault.starts_with("_shared/html/p.hbs:2: its style depends on where"), "{fault}");
}

#[test]
fn what_cannot_be_followed_is_left_alone_and_told() {
    for (body, want) in [
        ("\n<p class=\"{{#if x}}a{{/if}}\">x</p>", "html.hbs:2: classes are computed"),
        ("<p {{#if x}}title=\"a\"{{/if}}>x</p>", "attributes are computed"),
        ("{{#if x}}<div>{{else}}<div class=\"a\">{{/if}}x</div>", "opens or closes an element"),
        ("<div>{{#if x}}</div><div>{{/if}}x</div>", "closes an element that it did not open"),
        ("<style>p{color:{{x}}}</style>", "rules to be moved are computed"),
        ("<style>p + p{color:red}</style>", "asks for more than an element"),
        ("<style>li:first-child{color:red}</style>", "asks for more than an element"),
        ("<p class={{x}}>", "attributes are computed"),
        ("<p class=a>", "has no quotes"),
        ("\\{{x}}", "escaped with a backslash"),
    ] {
        let html = format!("<style>.a{{color:red!important}} p{{color:red}}</style>{body}");
        let fault = moved(&html, &[]).expect_err(body);
        assert!(fault.contains(want), "{body}: {fault}");
    }
    let deep = format!("<style>p{{color:red}}</style>{}", "<div>".repeat(DEPTH_MAX + 1));
    assert!(moved(&deep, &[]).expect_err("deep").contains("nested more than 100 deep"));
    let many = format!("<style>p{{color:red}}</style>{}", "<p>x</p>".repeat(ELEMENTS_MAX));
    assert!(moved(&many, &[]).expect_err("many").contains("more than 3000 elements"));
    assert!(moved("<style>p{color:red}</style><table><p>{{#each x}}<tr></tr>{{/each}}</table><frame>", &[]).is_err());
}

#[test]
fn selectors() {
    for (css, want) in [
        ("", Rules::None),
        ("/* p{} */ @media x { p { a: b } }", Rules::None),
        ("@import url(x); p{a:b}", Rules::Some),
        ("a > b, c d {x:y}", Rules::Some),
        ("@media x { p ~ q { a: b } } a ~ b { c: d }", Rules::AboutOthers("a ~ b".into())),
    ] {
        assert_eq!(rules(css), want, "{css}");
    }
}

/// Every mail of ours, in every locale, with its sample, with each variable replaced by something odd, and with each
/// optional one left out: the same whether styles are moved before it is rendered or afterwards.
#[test]
fn moving_styles_before_rendering_is_moving_them_afterwards() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/templates"));
    let odd =
        [json!(""), json!(0), json!(41), json!("<b class=\"card\" style=\"x\">&\"'"), json!(["a", "b"]), json!("P1")];
    let (mut mails, mut locales) = (0, 0);
    for source in read_folder(folder).expect("the folder reads") {
        let template = CompiledTemplate::compile(&source, 1, 3).expect("compiles");
        for wording in template.wordings() {
            locales += 1;
            assert!(wording.moved().is_some(), "{}: {:?}", source.key, wording.not_moved);
            for variables in changed(&source, &odd) {
                let file = AttachedFile { file_name: "<a>.pdf", content_type: "application/pdf" };
                for (attachments, email) in [(&[file][..], Some("a@b.bj")), (&[][..], None)] {
                    let system = System {
                        request_date: DateTime::UNIX_EPOCH,
                        attachments,
                        support_email: email,
                        support_phone: email,
                        timezone: chrono_tz::Africa::PortoNovo,
                        locale: &wording.locale,
                        unsubscribe_url: email.map(|_| "https://example.com/u?a=1&b=2"),
                    };
                    let Ok((mut context, largest)) = template.context(&variables, wording, &system) else { continue };
                    context.data_mut()[RESERVED]["subject"] = Value::from("<title>");
                    let render = |(part, registry)| {
                        wording.render_with(Part::Html, part, registry, &context, largest, system.timezone)
                    };
                    let (written, sent) = (render(wording.part(Part::Html)), wording.moved().map(render));
                    let (Ok(written), Some(Ok(sent))) = (written, sent) else { continue };
                    assert!(same(&written, &sent).expect("CSS"), "{}: {variables:?}", source.key);
                    mails += 1;
                }
            }
        }
    }
    assert!(mails > 500 && locales >= 14, "{mails} mails in {locales} wordings");
}

fn changed(source: &TemplateSource, odd: &[Value]) -> Vec<Map<String, Value>> {
    let mut all = vec![source.sample.clone()];
    for name in source.sample.keys() {
        for value in odd {
            let mut variables = source.sample.clone();
            variables.insert(name.clone(), value.clone());
            all.push(variables);
        }
        let mut variables = source.sample.clone();
        variables.remove(name);
        all.push(variables);
    }
    all
}
