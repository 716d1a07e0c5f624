// Headless Chromium at a phone's width against the page of a running examples/serve, with the keyboard alone:
//
//	npm install && CHROMIUM=/usr/bin/chromium node page.mjs http://127.0.0.1:8080 page.png
import assert from "node:assert/strict";
import puppeteer from "puppeteer-core";

const [url, picture] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
try {
	const page = await browser.newPage();
	const problems = [];
	page.on("pageerror", (error) => problems.push(error.message));
	page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
	await page.setViewport({ width: 360, height: 740, deviceScaleFactor: 2 });
	await page.goto(url, { waitUntil: "networkidle0" });
	assert.equal(await page.evaluate(() => document.activeElement.id), "prompt", "the prompt has the focus");
	await page.keyboard.type("(w io.Writer) ");
	await page.keyboard.press("Tab"); // the settings
	await page.keyboard.press("Enter");
	for (let i = 0; i < 2; i++) await page.keyboard.press("Tab"); // how, tokens
	await page.keyboard.down("Control");
	await page.keyboard.press("a");
	await page.keyboard.up("Control");
	await page.keyboard.type("150");
	await page.evaluate(() => {
		window.lengths = new Set();
		const answer = document.getElementById("answer");
		new MutationObserver(() => window.lengths.add(answer.textContent.length)).observe(answer, { childList: true });
	});
	await page.keyboard.press("Enter"); // sends the form
	await page.waitForFunction(() => document.querySelector("#status.wrong") || document.getElementById("status").textContent.startsWith("tokens: "));
	const parts = await page.evaluate(() => window.lengths.size);
	const text = await page.$eval("#answer", (answer) => answer.textContent);
	const status = await page.$eval("#status", (status) => status.textContent);
	assert.ok(text.length > 50, text);
	assert.ok(parts > 2, `the answer came in ${parts} parts`);
	assert.match(status, /^tokens: 150, \d+\.\d tokens\/s, first after \d+ ms$/);
	const wide = await page.evaluate(() => document.documentElement.scrollWidth);
	assert.ok(wide <= 360, `the page is ${wide} pixels wide`);
	assert.deepEqual(problems, []);
	await page.screenshot({ path: picture, fullPage: true });
	console.log(`ok    ${status}; the answer came in ${parts} parts`);
} finally {
	await browser.close();
}
