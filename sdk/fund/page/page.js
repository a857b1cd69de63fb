// A wallet of this browser (EIP-6963) is asked to send the token to the address that the page shows. It asks its owner before it does.
const $ = (id) => document.getElementById(id);
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
  $("balance").textContent = state.balance === undefined ? "not known" : `$${state.balance}`;
  return state;
}

// send has the wallet send the dollars, on the right chain or not at all.
async function send(wallet) {
  const state = await asked();
  const amount = baseUnits($("amount").value, state.decimals);
  if (amount === 0n) return say(`Say an amount of dollars with at most ${state.decimals} decimals, such as 20.`);
  say("Your wallet asks you now.");
  const [from] = await wallet.request({ method: "eth_requestAccounts" });
  const there = async () => BigInt(await wallet.request({ method: "eth_chainId" })) === BigInt(state.chainId);
  if (!(await there())) {
    await wallet.request({ method: "wallet_switchEthereumChain", params: [{ chainId: state.chainId }] });
    if (!(await there())) return say(`Your wallet is still on another chain: choose chain ${BigInt(state.chainId)} in it, and try again. Nothing was sent.`);
  }
  const data = `0xa9059cbb${word(state.address)}${word(amount.toString(16))}`; // transfer(address,uint256)
  await wallet.request({ method: "eth_sendTransaction", params: [{ from, to: state.token, data }] });
  say("Sent. It is in the wallet in some seconds; this page shows when.");
}

// refused is what a wallet's error means (EIP-1193).
function refused(error) {
  switch (error?.code) {
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
  button.onclick = async () => {
    for (const each of wallets.values()) each.disabled = true; // one click sends once
    try {
      await send(provider);
    } catch (error) {
      say(refused(error));
    }
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
