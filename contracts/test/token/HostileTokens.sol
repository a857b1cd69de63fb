// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "solady/tokens/ERC20.sol";

// Tokens that misbehave, for tests only. Each shows one way in which a token differs from what a payee hopes for.

/// @notice A plain token that anyone can mint, and the base of the others. Its ERC-3009 checks no signature at all: the
/// escrow must not depend on the token for anything but the balance it reads.
contract LooseToken is ERC20 {
    function name() public pure override returns (string memory) {
        return "Loose";
    }

    function symbol() public pure override returns (string memory) {
        return "LOOSE";
    }

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external virtual {
        _move(from, to, value);
    }

    function transfer(address to, uint256 amount) public virtual override returns (bool) {
        _move(msg.sender, to, amount);
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) public virtual override returns (bool) {
        _spendAllowance(from, msg.sender, amount);
        _move(from, to, amount);
        return true;
    }

    function _move(address from, address to, uint256 amount) internal virtual {
        _transfer(from, to, amount);
    }
}

/// @notice Keeps a percentage of every transfer, rounded up.
contract FeeToken is LooseToken {
    uint256 private _percent;

    function setFee(uint256 percent) external {
        _percent = percent;
    }

    function _move(address from, address to, uint256 amount) internal override {
        uint256 fee = (amount * _percent + 99) / 100;
        _transfer(from, to, amount - fee);
        _burn(from, fee);
    }
}

/// @notice Sends one unit more than it was asked for.
contract BonusToken is LooseToken {
    function _move(address from, address to, uint256 amount) internal override {
        _transfer(from, to, amount);
        _mint(to, 1);
    }
}

/// @notice Says no by returning false instead of reverting, once `refuse` was called.
contract FalseToken is LooseToken {
    bool private _refusing;

    function refuse(bool refusing) external {
        _refusing = refusing;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        return !_refusing && super.transfer(to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) public override returns (bool) {
        return !_refusing && super.transferFrom(from, to, amount);
    }
}

/// @notice Says yes and moves nothing.
contract LyingToken is LooseToken {
    function _move(address, address, uint256) internal override {}
}

/// @notice Lets its author take anybody's money.
contract SeizingToken is LooseToken {
    function seize(address from, uint256 amount) external {
        _burn(from, amount);
    }
}

/// @notice Blocks addresses, as the large stablecoins can.
contract BlockingToken is LooseToken {
    mapping(address => bool) public blocked;

    error Blocked(address account);

    function setBlocked(address account, bool on) external {
        blocked[account] = on;
    }

    function _move(address from, address to, uint256 amount) internal override {
        require(!blocked[from], Blocked(from));
        require(!blocked[to], Blocked(to));
        _transfer(from, to, amount);
    }
}

/// @notice Refuses to pay some addresses, or everybody, in each way in which a token can. Paused it takes no deposits either.
contract RefusingToken is LooseToken {
    enum Way {
        Pays,
        Reverts,
        SaysFalse,
        BurnsAllGas,
        SaysALot
    }

    mapping(address => Way) public way;
    bool public paused;

    error Refused(address to);

    function refuse(address to, Way how) external {
        way[to] = how;
    }

    function pause(bool on) external {
        paused = on;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        Way how = way[to];
        if (how == Way.SaysFalse) return false;
        if (how == Way.BurnsAllGas) {
            assembly ("memory-safe") {
                invalid()
            }
        }
        if (how == Way.SaysALot) {
            assembly ("memory-safe") {
                revert(0, 100000)
            }
        }
        require(how == Way.Pays, Refused(to));
        return super.transfer(to, amount);
    }

    function _move(address from, address to, uint256 amount) internal override {
        require(!paused, Refused(to));
        _transfer(from, to, amount);
    }
}

/// @notice Needs a great deal of gas for a transfer, all of it before it moves anything.
contract HungryToken is LooseToken {
    uint256 private _hunger;

    function hunger(uint256 gas) external {
        _hunger = gas;
    }

    function _move(address from, address to, uint256 amount) internal override {
        uint256 end = _hunger;
        if (end != 0) {
            uint256 begun = gasleft();
            while (begun - gasleft() < end) {}
        }
        _transfer(from, to, amount);
    }
}

/// @notice Calls something when it moves money, in the middle of a deposit or payout, before the balances change.
contract ReentrantToken is LooseToken {
    address private _target;
    bytes private _call;
    bool private _refusing;
    bool public succeeded;
    bytes public result;

    /// @notice The next transfer moves nothing and says so, but calls back all the same.
    function refuseOnce() external {
        _refusing = true;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        if (!_refusing) return super.transfer(to, amount);
        _refusing = false;
        _callBack();
        return false;
    }

    /// @notice The next transfer calls `target` with `data`; once.
    function arm(address target, bytes calldata data) external {
        _target = target;
        _call = data;
    }

    /// @notice Lets the token itself be a payer.
    function approveAs(address spender, uint256 amount) external {
        _approve(address(this), spender, amount);
    }

    function _move(address from, address to, uint256 amount) internal override {
        _callBack();
        _transfer(from, to, amount);
    }

    function _callBack() private {
        address target = _target;
        _target = address(0);
        if (target != address(0)) (succeeded, result) = target.call(_call);
    }
}

/// @notice Returns nothing from any call, like the oldest tokens. It has no ERC-3009.
contract SilentToken {
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}
