// A wallet of this browser (EIP-6963) is asked to send the token to the address that the page shows. It asks its owner before it does.
const $ = (id) => document.getElementById(id);
const shown = document.querySelector("main").dataset; // what is sent, and to where: whoever answers here later cannot change it
const say = (text) => ($("said").textContent = text);
const asked = async () => (await fetch("state")).json();
const word = (hex) => hex.replace(/^0x/, "").toLowerCase().padStart(64, "0");

// baseUnits is an amount of dollars as the token counts, or nothing where it is none.
function baseUnits(text, decimals) {
  const [, whole, part = ""] = /^\s*(\d{1,12})(?:\.(\d+))?\s*$/.exec(text) ?? [];
  if (whole === undefined || part.length > decimals) return 0n;
  return BigInt(whole + part.padEnd(decimals, "0"));
}

async function look() {
  const state = await asked();
  const known = state.balance !== undefined && state.address === shown.address;
  $("balance").textContent = known ? `$${state.balance}` : "not known";
}

let sending = false; // one click sends once, at whichever wallet

// send has the wallet send the dollars, on the right chain or not at all.
async function send(wallet) {
  const decimals = Number(shown.decimals);
  const amount = baseUnits($("amount").value, decimals);
  if (amount === 0n) return say(`Say an amount of dollars with at most ${decimals} decimals, such as 20.`);
  say("Your wallet asks you now.");
  const [from] = (await wallet.request({ method: "eth_requestAccounts" })) ?? [];
  if (!from) return say("Your wallet has shown no account: choose one in it, and try again. Nothing was sent.");
  const there = async () => BigInt(await wallet.request({ method: "eth_chainId" })) === BigInt(shown.chain);
  if (!(await there())) {
    await wallet.request({ method: "wallet_switchEthereumChain", params: [{ chainId: shown.chain }] });
    if (!(await there())) return say(`Your wallet is still on another chain: choose chain ${BigInt(shown.chain)} in it, and try again. Nothing was sent.`);
  }
  const data = `0xa9059cbb${word(shown.address)}${word(amount.toString(16))}`; // transfer(address,uint256)
  await wallet.request({ method: "eth_sendTransaction", params: [{ from, to: shown.token, data, chainId: shown.chain }] });
  say("Sent. It is in the wallet in some seconds; this page shows when.");
}

// refused is what a wallet's error means (EIP-1193).
function refused(error) {
  switch (error?.data?.originalError?.code ?? error?.code) {
    case 4001: return "You declined it in your wallet: nothing was sent.";
    case 4902: return "Your wallet does not know that chain: add it there, and try again. Nothing was sent.";
    case -32002: return "Your wallet still waits for an answer to what it asked before: open it.";
    default: return `Your wallet says: ${error?.message ?? error}`;
  }
}

const wallets = new Map();
addEventListener("eip6963:announceProvider", ({ detail: { info, provider } }) => {
  if (wallets.has(info.uuid)) return;
  const button = document.createElement("button");
  button.textContent = `Send with ${info.name}`;
  button.disabled = sending;
  button.onclick = async () => {
    if (sending) return;
    sending = true;
    for (const each of wallets.values()) each.disabled = true;
    try {
      await send(provider);
    } catch (error) {
      say(refused(error));
    }
    sending = false;
    for (const each of wallets.values()) each.disabled = false;
  };
  wallets.set(info.uuid, button);
  $("wallets").append(button);
  $("none").hidden = true;
});
dispatchEvent(new Event("eip6963:requestProvider"));
for (;;) {
  await look().catch(() => ($("balance").textContent = "not known"));
  await new Promise((next) => setTimeout(next, 2000));
}
