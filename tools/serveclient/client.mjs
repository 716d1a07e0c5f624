// The official OpenAI client against a running examples/serve:
//
//	npm install && node client.mjs http://127.0.0.1:8080 [KEY]
//
// A server with a chat template is asked for chats too; without one, a chat must be refused.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, apiKey = "none"] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey, maxRetries: 0 });

// refuses runs a request that the server must refuse, with a status and the name of a parameter.
async function refuses(status, param, request) {
	await assert.rejects(request, (error) => {
		assert.ok(error instanceof OpenAI.APIError, String(error));
		assert.equal(error.status, status, error.message);
		assert.equal(error.param ?? null, param, error.message);
		return true;
	});
}

const tests = {
	async models() {
		const list = await client.models.list();
		assert.equal(list.data.length, 1);
		assert.equal((await client.models.retrieve(list.data[0].id)).id, model);
	},
	async completion() {
		const ask = () => client.completions.create({ model, prompt: "func ", max_tokens: 20, seed: 7, temperature: 0.8, top_p: 0.9 });
		const [a, b] = [await ask(), await ask()];
		assert.equal(a.choices[0].text, b.choices[0].text);
		assert.equal(a.choices[0].finish_reason, "length");
		assert.equal(a.usage.completion_tokens, 20);
		assert.equal(a.usage.total_tokens, 20 + a.usage.prompt_tokens);
	},
	async "several prompts and answers, echo and penalties"() {
		const c = await client.completions.create({ model, prompt: ["a", "b"], n: 2, echo: true, max_tokens: 3, presence_penalty: 1, frequency_penalty: 0.5 });
		assert.deepEqual(c.choices.map((x) => [x.index, x.text[0]]), [[0, "a"], [1, "a"], [2, "b"], [3, "b"]]);
	},
	async "stream is the whole"() {
		const body = { model, prompt: "package ", max_tokens: 60, seed: 3, logprobs: 1 };
		const whole = await client.completions.create(body);
		let text = "", usage = null, tokens = [];
		for await (const part of await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } })) {
			text += part.choices[0]?.text ?? "";
			tokens.push(...(part.choices[0]?.logprobs?.tokens ?? []));
			usage = part.usage ?? usage;
		}
		assert.equal(text, whole.choices[0].text);
		assert.deepEqual(tokens, whole.choices[0].logprobs.tokens);
		assert.deepEqual(usage, whole.usage);
	},
	async stop() {
		const body = { model, prompt: "func ", max_tokens: 200, seed: 5, temperature: 0.7 };
		const text = (await client.completions.create(body)).choices[0].text;
		const stop = text.slice(40, 44); // several tokens of a model of bytes
		const cut = await client.completions.create({ ...body, stop: ["never there", stop] });
		assert.equal(cut.choices[0].text, text.slice(0, text.indexOf(stop)));
		assert.equal(cut.choices[0].finish_reason, "stop");
	},
	async "a stream that is given up"() {
		const stream = await client.completions.create({ model, prompt: "a", max_tokens: 2000, stream: true });
		for await (const part of stream) {
			assert.ok(part.choices[0].text.length > 0);
			stream.controller.abort();
			break;
		}
	},
	async errors() {
		await refuses(400, "temperature", client.completions.create({ model, prompt: "a", temperature: 3 }));
		await refuses(400, "max_tokens", client.completions.create({ model, prompt: "a", max_tokens: 1e9 }));
		await refuses(400, "logit_bias", client.completions.create({ model, prompt: "a", logit_bias: { 1: 1 } }));
		await refuses(400, "prompt", client.completions.create({ model, prompt: "" }));
		await refuses(404, "model", client.completions.create({ model: "other", prompt: "a" }));
		await refuses(404, "model", client.models.retrieve("other"));
		await refuses(413, null, client.completions.create({ model, prompt: "a".repeat(2 << 20) }));
		await refuses(404, null, client.embeddings.create({ model, input: "a" }));
		if (apiKey !== "none") {
			await refuses(401, null, new OpenAI({ baseURL: url + "/v1", apiKey: "wrong" }).models.list());
		}
	},
	async chat() {
		const body = { model, messages: [{ role: "system", content: "be short" }, { role: "user", content: "hello" }], max_completion_tokens: 30, seed: 1 };
		let whole;
		try {
			whole = await client.chat.completions.create(body);
		} catch (error) {
			assert.equal(error.code, "no_chat_template");
			assert.equal(error.status, 400);
			return "refused, the model has no template";
		}
		assert.equal(whole.choices[0].message.role, "assistant");
		let text = "", end = "";
		for await (const part of await client.chat.completions.create({ ...body, stream: true })) {
			text += part.choices[0]?.delta?.content ?? "";
			end = part.choices[0]?.finish_reason ?? end;
		}
		assert.equal(text, whole.choices[0].message.content);
		assert.equal(end, whole.choices[0].finish_reason);
		const helper = client.chat.completions.stream({ ...body, logprobs: true, top_logprobs: 2 });
		const final = await helper.finalChatCompletion();
		assert.equal(final.choices[0].message.content, text);
		assert.equal(final.choices[0].logprobs.content[0].top_logprobs.length, 2);
		await refuses(400, "messages[0].role", client.chat.completions.create({ model, messages: [{ role: "tool", content: "a" }] }));
		await refuses(400, "tools", client.chat.completions.create({ ...body, tools: [] }));
	},
};

const model = (await client.models.list()).data[0].id;
let failed = false;
for (const [name, test] of Object.entries(tests)) {
	try {
		const note = await test();
		console.log(`ok    ${name}${note ? ": " + note : ""}`);
	} catch (error) {
		failed = true;
		console.log(`FAIL  ${name}: ${error.stack}`);
	}
}
process.exitCode = failed ? 1 : 0;
