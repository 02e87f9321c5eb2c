use std::time::Duration;

use gguf::Value as Meta;

use super::*;
use crate::Message;
use crate::tiny::Tiny;

fn render(source: &str) -> Result<String, TemplateError> {
    let template = ChatTemplate::new(source, Some("<s>".into()), Some("</s>".into()))?;
    let messages = vec![Message::new("system", "Be <brief> & \"good\"."), Message::new("user", "Hi")].into();
    // 2024-02-29 12:34:56 UTC
    template.render_at(&messages, SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_210_096))
}

#[test]
fn templates_run_as_hugging_face_runs_them() {
    for (source, expected) in [
        // Blocks take their line with them.
        ("{% if true %}\n  {% set x = 1 %}\nA\n{% endif %}\nB", "A\nB"),
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ messages[0].content }}", "Be <brief> & \"good\"."),
        ("{{ messages[0]['content'].split(' ')[1].upper() }}", "<BRIEF>"),
        ("{{ messages[1].content.strip().startswith('H') }}", "True"),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.role | trim }}{{ loop.last }}{% endfor %}",
            "userTrue",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
            "Hi",
        ),
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}{{ messages[-1].role }}", "Hiuser"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{% if tools is none and documents is none and not tools %}none{% endif %}", "none"),
        ("{% if date is defined %}x{% else %}no date{% endif %}", "no date"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}", "[1]"),
        ("{{ strftime_now('%d %b %Y') }}", "29 Feb 2024"),
        ("{{ messages[0] | tojson }}", r#"{"role": "system", "content": "Be <brief> & \"good\"."}"#),
        ("{{ [1, 2.5, none, true, 'ü'] | tojson }}", r#"[1, 2.5, null, true, "ü"]"#),
        ("{{ {'b': [1], 'a': {}} | tojson(indent=2) }}", "{\n  \"b\": [\n    1\n  ],\n  \"a\": {}\n}"),
        ("{{ 'é' | tojson(ensure_ascii=False) }}", "\"é\""),
        ("{%- if messages[0] is mapping and messages[0].content is string -%} ok {%- endif -%}", "ok"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn tokens_the_model_does_not_have_are_undefined() {
    let template = ChatTemplate::new("{{ bos_token }}{{ bos_token is defined }}", None, None).unwrap();
    assert_eq!(template.render(&vec![Message::new("user", "x")].into()).unwrap(), "False");
}

#[test]
fn faults_are_told_apart() {
    let template = ChatTemplate::new("x", None, None).unwrap();
    for (result, request_fault, says) in [
        (template.render(&Conversation::default()), true, "messages: is empty"),
        (render("{{ raise_exception('Roles must alternate') }}"), true, "refuses them: Roles must alternate"),
        (
            render(
                "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{% for x in messages %}{{ m() }}{% endfor %}",
            ),
            true,
            "refuses them: deep",
        ),
        (render("{% if x %}"), false, "not understood"),
        (render("a\n{{ messages.nothing() }}"), false, "(line 2)"),
        (render("{{ messages[9].content }}"), false, "failed"),
        (render("{{ 1 | tojson(ensure_ascii=True) }}"), false, "ensure_ascii=True) is not built"),
        (render("{{ strftime_now('%') }}"), false, "strftime_now"),
    ] {
        let error = result.expect_err(says);
        assert_eq!(error.is_request_fault(), request_fault, "{error}");
        assert!(error.to_string().contains(says), "{error}\nshould say: {says}");
    }
}

#[test]
fn hostile_templates_run_out_of_fuel() {
    for source in [
        "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, TemplateError::TooMuchWork), "{source}: {error}");
    }
    let endless = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(endless), Err(TemplateError::Failed(_))), "recursion has a limit of its own");
}

#[test]
fn a_long_conversation_has_fuel_to_spare() {
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    let many = vec![Message::new("user", "short"); 100_000];
    let large = vec![Message::new("user", "x".repeat(1 << 20)); 16];
    for messages in [many, large] {
        assert!(template.render(&messages.into()).unwrap().len() > 1_000_000);
    }
}

#[test]
fn a_file_gives_its_template_and_its_tokens() {
    let key = "tokenizer.chat_template";
    let with = |value| ChatTemplate::from_gguf(&Tiny::new().set(key, value).header());
    let template = with(Some(Meta::Str("{{ bos_token }}|{{ eos_token }}".into()))).unwrap();
    assert_eq!(template.render(&vec![Message::new("user", "x")].into()).unwrap(), "<|endoftext|>|<|im_end|>");
    assert!(matches!(with(None), Err(TemplateError::Missing)));
    assert!(matches!(with(Some(Meta::U32(1))), Err(TemplateError::Gguf(_))));
}
